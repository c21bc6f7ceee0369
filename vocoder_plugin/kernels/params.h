/* Parameters of the kernels: what ggml hands a custom operation as userdata. Mirrored by kernels/__init__.py. */
#ifndef VP_PARAMS_H
#define VP_PARAMS_H

#include <stdatomic.h>
#include <stdint.h>

enum { VP_NONE, VP_SNAKE, VP_ELU }; /* activations */

struct vp_conv1d {
    int32_t taps, dilation, stride;
    int32_t vectors;      /* of a panel of packed weights: VP_VECS or 2 */
    int32_t block;        /* input channels per block of packed weights: summed apart, then added up */
    int32_t together;     /* taps that are summed in one block */
    int32_t weight_bytes; /* 4: floats; 2 or 1: integers, times inputs of 16 bits (tile_integers.c) */
    int32_t activation;   /* of the window's rows */
    int32_t zeros;        /* rows of padding before the window's first row */
    int32_t skip_zeros;   /* the same for the skip window */
    int32_t skip_first;   /* row of the skip window that is added to output 0 */
    int32_t rate, delay;  /* output 0 is sample position * rate - delay of its stream (winograd.c) */
    /* Which source of the operation is what; -1 where absent. */
    int32_t weight, scale, bias, chunk, history, alpha, inverse, skip_chunk, skip_history, position;
};

/* Of norms.c and activations.c. */
struct vp_norm {
    float epsilon;
    int32_t groups;      /* of the group norm */
    int32_t mode;        /* GELU: 1 for the tanh form; group norm: 1 for swish after it; pad: 1 for ELU */
    int32_t left, right; /* rows of reflection */
    int32_t taps;        /* of the depthwise convolution before a layer norm, 0 for none */
};

struct vp_attention {
    float scale;   /* of scores, before their softmax */
    int32_t keys;  /* vp_pack_attention: 1 packs keys, 0 values */
    int32_t heads; /* of equal size, side by side in a row */
};

struct vp_sliding_attention {
    int32_t heads, window;
    int32_t capacity; /* positions of a ring, a whole number of vectors */
    int32_t offset;   /* of this layer's first key in a ring, in floats */
};

/* One stream of a batch, in sliding attention's source `control` [4, batch]. */
struct vp_stream {
    uint32_t low, high; /* of the ring's address */
    int32_t slot;       /* of the chunk's first position in the ring */
    int32_t past;       /* positions before the chunk that can be seen, at most window - 1 */
};

/* Where the threads of one LSTM layer meet; both 0 between runs. */
struct vp_lstm {
    atomic_int arrived, left;
};

#endif
