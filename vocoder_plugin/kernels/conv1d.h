#ifndef VP_CONV1D_H
#define VP_CONV1D_H

#include <stdint.h>

/* Mirrored by kernels/__init__.py. Source indices are -1 where absent. */
struct vp_conv1d {
    int32_t taps, dilation, stride;
    int32_t vectors;    /* of a panel of packed weights: VP_VECS or 2 */
    int32_t block;      /* input channels per block of packed weights: summed apart, then added up */
    int32_t together;   /* taps that are summed in one block */
    int32_t weight_bytes; /* 4: floats; 2 or 1: integers, times inputs of 16 bits (int16.c) */
    int32_t elu;        /* apply ELU to the window, instead of Snake */
    int32_t zeros;      /* rows of padding before the window's first row */
    int32_t skip_zeros; /* the same for the skip window */
    int32_t skip_first; /* row of the skip window that is added to output 0 */
    int32_t rate, delay; /* output 0 is sample position * rate - delay of its stream (winograd.c) */
    int32_t weight, scale, bias, chunk, history, alpha, inverse, skip_chunk, skip_history, position; /* source indices */
};

#endif
