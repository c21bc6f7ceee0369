/* Layer norm, group norm.
 *
 * ggml custom operations over channels-last rows, [channels, rows] in ggml's order; userdata is a struct vp_norm.
 * Rows (or groups, for the group norm) are split between threads: a result does not depend on the thread.
 */
#include <stdlib.h>

#include "mathvec.h"
#include "params.h"

/* Layer norm over channels, of the input itself or of a depthwise convolution of it ("same" padding).
 * Sources: x, weight, bias [C]; kernel [C, taps] and its bias [C] with taps > 0. */
VP_API void vp_layer_norm(void *dst, int ith, int nth, void *userdata) {
    const struct vp_norm *p = userdata;
    const void *x = tensor_src(dst, 0);
    const float *weight = source_floats(dst, 1), *bias = source_floats(dst, 2);
    const float *kernel = source_floats(dst, 3), *kernel_bias = source_floats(dst, 4);
    const int channels = (int)tensor_ne(dst, 0);
    const int64_t rows = tensor_ne(dst, 1);
    for (int64_t t = rows * ith / nth, end = rows * (ith + 1) / nth; t < end; t++) {
        float *y = tensor_row(dst, t);
        const float *from = tensor_row(x, t);
        vfloat total = {0};
        if (p->taps) {
            const int64_t first = t - p->taps / 2;
            const int j0 = first < 0 ? (int)-first : 0;
            const int j1 = first + p->taps > rows ? (int)(rows - first) : p->taps;
            for (int c = 0; c < channels; c += VP_LANES) {
                const int n = channels - c;
                vfloat sum = load_some(kernel_bias + c, n);
                for (int j = j0; j < j1; j++)
                    sum = multiply_add(load_some(kernel + (int64_t)j * channels + c, n),
                                       load_some(tensor_row(x, first + j) + c, n), sum);
                store_some(y + c, sum, n);
                total += sum;
            }
            from = y;
        } else {
            for (int c = 0; c < channels; c += VP_LANES) total += load_some(from + c, channels - c);
        }
        const float mean = sum_lanes(total) / channels;
        vfloat square = {0};
        for (int c = 0; c < channels; c += VP_LANES) {
            vfloat d = load_some(from + c, channels - c) - mean;
            if (channels - c < VP_LANES)
                for (int i = channels - c; i < VP_LANES; i++) d[i] = 0;
            square = multiply_add(d, d, square);
        }
        const float scale = 1.0f / sqrtf(sum_lanes(square) / channels + p->epsilon);
        for (int c = 0; c < channels; c += VP_LANES) {
            const int n = channels - c;
            vfloat v = (load_some(from + c, n) - mean) * scale;
            store_some(y + c, multiply_add(v, load_some(weight + c, n), load_some(bias + c, n)), n);
        }
    }
}

#define PARTIAL_ROWS 128 /* summed in float before they join a sum in double */

/* Group norm over all rows and the channels of a group, then swish where mode is 1. Sources: x, weight, bias [C]. */
VP_API void vp_group_norm(void *dst, int ith, int nth, void *userdata) {
    const struct vp_norm *p = userdata;
    const void *x = tensor_src(dst, 0);
    const float *weight = source_floats(dst, 1), *bias = source_floats(dst, 2);
    const int channels = (int)tensor_ne(dst, 0), width = channels / p->groups;
    const int64_t rows = tensor_ne(dst, 1);
    const int g0 = p->groups * ith / nth, g1 = p->groups * (ith + 1) / nth;
    const int c0 = g0 * width, c1 = g1 * width;
    if (c0 >= c1) return;
    const int n = c1 - c0;
    float *scale = malloc(3 * (size_t)n * sizeof(float)), *mean = scale + n, *part = mean + n; /* part: partial sums */
    double *sums = malloc((size_t)n * sizeof(double));
    if (!scale || !sums) abort();
    for (int pass = 0; pass < 2; pass++) { /* means, then variances around them */
        for (int c = 0; c < n; c++) sums[c] = 0;
        for (int64_t t0 = 0; t0 < rows; t0 += PARTIAL_ROWS) {
            for (int c = 0; c < n; c++) part[c] = 0;
            for (int64_t t = t0; t < rows && t < t0 + PARTIAL_ROWS; t++) {
                const float *row = tensor_row(x, t) + c0;
                if (pass == 0)
                    for (int c = 0; c < n; c++) part[c] += row[c];
                else
                    for (int c = 0; c < n; c++) part[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
            }
            for (int c = 0; c < n; c++) sums[c] += part[c];
        }
        for (int g = 0; g < n; g += width) {
            double sum = 0;
            for (int c = g; c < g + width; c++) sum += sums[c];
            sum /= (double)rows * width;
            for (int c = g; c < g + width; c++) {
                if (pass == 0)
                    mean[c] = (float)sum;
                else
                    scale[c] = (float)(1.0 / sqrt(sum + p->epsilon)) * weight[c0 + c];
            }
        }
    }
    for (int64_t t = 0; t < rows; t++) {
        const float *row = tensor_row(x, t) + c0;
        float *y = tensor_row(dst, t) + c0;
        for (int c = 0; c < n; c += VP_LANES) {
            vfloat v = (load_some(row + c, n - c) - load_some(mean + c, n - c)) * load_some(scale + c, n - c);
            v += load_some(bias + c0 + c, n - c);
            if (p->mode) v = v * sigmoid_lanes(v);
            store_some(y + c, v, n - c);
        }
    }
    free(sums);
    free(scale);
}
