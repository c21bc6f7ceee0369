/* What whole-clip codecs need beside convolutions: norms, activations, padding, spectra.
 *
 * All are ggml custom operations over channels-last rows, [channels, rows] in ggml's order, contiguous;
 * userdata is a struct vp_clip. Rows (or channels, for the group norm) are split between threads. A row's
 * result does not depend on the thread that computes it.
 */
#include <stdlib.h>

#include "mathvec.h"

/* Mirrored by kernels/clip.py. Source indices are -1 where absent. */
struct vp_clip {
    float epsilon;
    int32_t groups;      /* of the group norm */
    int32_t mode;        /* GELU: 1 for the tanh form; group norm: 1 for swish after it; pad: 1 for ELU */
    int32_t left, right; /* rows of reflection */
    int32_t taps;        /* of the depthwise convolution, 0 for none */
};

enum { KIND_GELU, KIND_TANH_GELU, KIND_ELU, KIND_EXP, KIND_SIN, KIND_COS, KIND_TANH, KIND_SIGMOID };

/* One of the functions above on n values, n a multiple of VP_LANES: for measuring them. */
VP_API void vp_map(float *out, const float *x, int64_t n, int32_t kind) {
    for (int64_t i = 0; i < n; i += VP_LANES) {
        vfloat v = *(const vfloat *)(x + i), y = v, other;
        switch (kind) {
        case KIND_GELU: y = gelu_lanes(v); break;
        case KIND_TANH_GELU: y = gelu_tanh_lanes(v); break;
        case KIND_ELU: y = elu_lanes(v); break;
        case KIND_EXP: y = exp_lanes(v); break;
        case KIND_SIN: sincos_lanes(v, &y, &other); break;
        case KIND_COS: sincos_lanes(v, &other, &y); break;
        case KIND_TANH: y = tanh_lanes(v); break;
        case KIND_SIGMOID: y = sigmoid_lanes(v); break;
        }
        *(vfloat *)(out + i) = y;
    }
}

VP_INLINE float *row_of(const void *t, int64_t r) { return (float *)(tensor_data(t) + r * tensor_nb(t, 1)); }
VP_INLINE const float *floats_of(const void *dst, int i) {
    const void *t = tensor_src(dst, i);
    return t ? (const float *)tensor_data(t) : NULL;
}

/* Layer norm over channels, of the input itself or of a depthwise convolution of it ("same" padding).
 * Sources: x, weight, bias [C]; kernel [C, taps] and its bias [C] with taps > 0. */
VP_API void vp_layer_norm(void *dst, int ith, int nth, void *userdata) {
    const struct vp_clip *p = userdata;
    const void *x = tensor_src(dst, 0);
    const float *weight = floats_of(dst, 1), *bias = floats_of(dst, 2);
    const float *kernel = floats_of(dst, 3), *kernel_bias = floats_of(dst, 4);
    const int channels = (int)tensor_ne(dst, 0);
    const int64_t rows = tensor_ne(dst, 1);
    for (int64_t t = rows * ith / nth, end = rows * (ith + 1) / nth; t < end; t++) {
        float *y = row_of(dst, t);
        const float *from = row_of(x, t);
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
                                       load_some(row_of(x, first + j) + c, n), sum);
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

/* Group norm over all rows and the channels of a group, then swish where mode is 1. Sources: x, weight, bias [C]. */
#define PARTIAL_ROWS 128 /* summed in float before they join a sum in double */

VP_API void vp_group_norm(void *dst, int ith, int nth, void *userdata) {
    const struct vp_clip *p = userdata;
    const void *x = tensor_src(dst, 0);
    const float *weight = floats_of(dst, 1), *bias = floats_of(dst, 2);
    const int channels = (int)tensor_ne(dst, 0), width = channels / p->groups;
    const int64_t rows = tensor_ne(dst, 1);
    const int g0 = p->groups * ith / nth, g1 = p->groups * (ith + 1) / nth;
    const int c0 = g0 * width, c1 = g1 * width;
    if (c0 >= c1) return;
    const int n = c1 - c0;
    float *buffer = malloc(3 * (size_t)n * sizeof(float)); /* scales, means, partial sums */
    double *sums = malloc((size_t)n * sizeof(double));
    if (!buffer || !sums) abort();
    float *scale = buffer, *mean = buffer + n, *part = buffer + 2 * n;
    for (int pass = 0; pass < 2; pass++) { /* means, then variances around them */
        for (int c = 0; c < n; c++) sums[c] = 0;
        for (int64_t t0 = 0; t0 < rows; t0 += PARTIAL_ROWS) {
            for (int c = 0; c < n; c++) part[c] = 0;
            for (int64_t t = t0; t < rows && t < t0 + PARTIAL_ROWS; t++) {
                const float *row = row_of(x, t) + c0;
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
        const float *row = row_of(x, t) + c0;
        float *y = row_of(dst, t) + c0;
        for (int c = 0; c < n; c += VP_LANES) {
            vfloat v = (load_some(row + c, n - c) - load_some(mean + c, n - c)) * load_some(scale + c, n - c);
            v += load_some(bias + c0 + c, n - c);
            if (p->mode) v = v * sigmoid_lanes(v);
            store_some(y + c, v, n - c);
        }
    }
    free(sums);
    free(buffer);
}

/* GELU, by erf or (mode 1) by tanh. Source: x. */
VP_API void vp_gelu(void *dst, int ith, int nth, void *userdata) {
    const struct vp_clip *p = userdata;
    const void *x = tensor_src(dst, 0);
    const int channels = (int)tensor_ne(dst, 0);
    const int64_t rows = tensor_ne(dst, 1);
    for (int64_t t = rows * ith / nth, end = rows * (ith + 1) / nth; t < end; t++) {
        const float *from = row_of(x, t);
        float *y = row_of(dst, t);
        for (int c = 0; c < channels; c += VP_LANES) {
            vfloat v = load_some(from + c, channels - c);
            store_some(y + c, p->mode ? gelu_tanh_lanes(v) : gelu_lanes(v), channels - c);
        }
    }
}

/* ELU (mode 1) and rows reflected about the first and the last: dst [C, left + rows + right]. Source: x.
 * A clip too short to reflect is first continued with zeros, as EnCodec does it. */
VP_API void vp_pad(void *dst, int ith, int nth, void *userdata) {
    const struct vp_clip *p = userdata;
    const void *x = tensor_src(dst, 0);
    const int channels = (int)tensor_ne(dst, 0);
    const int64_t rows = tensor_ne(x, 1), out = tensor_ne(dst, 1);
    const int64_t reach = p->left > p->right ? p->left : p->right;
    const int64_t last = (rows > reach ? rows : reach + 1) - 1;
    for (int64_t t = out * ith / nth, end = out * (ith + 1) / nth; t < end; t++) {
        int64_t r = t - p->left;
        if (r < 0) r = -r;
        if (r > last) r = 2 * last - r;
        float *y = row_of(dst, t);
        if (r >= rows) {
            memset(y, 0, channels * sizeof(float));
            continue;
        }
        const float *from = row_of(x, r);
        if (!p->mode) {
            memcpy(y, from, channels * sizeof(float));
            continue;
        }
        for (int c = 0; c < channels; c += VP_LANES)
            store_some(y + c, elu_lanes(load_some(from + c, channels - c)), channels - c);
    }
}

/* Log magnitudes and phases -> real and imaginary parts; magnitudes are at most 100. Source: x [2 * bins, rows]. */
VP_API void vp_polar(void *dst, int ith, int nth, void *userdata) {
    (void)userdata;
    const void *x = tensor_src(dst, 0);
    const int bins = (int)tensor_ne(dst, 0) / 2;
    const int64_t rows = tensor_ne(dst, 1);
    for (int64_t t = rows * ith / nth, end = rows * (ith + 1) / nth; t < end; t++) {
        const float *from = row_of(x, t);
        float *y = row_of(dst, t);
        for (int k = 0; k < bins; k += VP_LANES) {
            const int n = bins - k;
            vfloat sine, cosine, size = least(exp_lanes(load_some(from + k, n)), splat(100.0f));
            sincos_lanes(load_some(from + bins + k, n), &sine, &cosine);
            store_some(y + k, size * cosine, n);
            store_some(y + bins + k, size * sine, n);
        }
    }
}
