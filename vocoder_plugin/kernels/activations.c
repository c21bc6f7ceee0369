/* What works on each row alone: GELU, padding by reflection with ELU, spectra from polar form.
 *
 * ggml custom operations over channels-last rows, [channels, rows] in ggml's order; userdata is a struct vp_norm.
 */
#include "mathvec.h"
#include "params.h"

/* GELU, by erf or (mode 1) by tanh. Source: x. */
VP_API void vp_gelu(void *dst, int ith, int nth, void *userdata) {
    const struct vp_norm *p = userdata;
    const void *x = tensor_src(dst, 0);
    const int channels = (int)tensor_ne(dst, 0);
    const int64_t rows = tensor_ne(dst, 1);
    for (int64_t t = rows * ith / nth, end = rows * (ith + 1) / nth; t < end; t++) {
        const float *from = tensor_row(x, t);
        float *y = tensor_row(dst, t);
        for (int c = 0; c < channels; c += VP_LANES) {
            vfloat v = load_some(from + c, channels - c);
            store_some(y + c, p->mode ? gelu_tanh_lanes(v) : gelu_lanes(v), channels - c);
        }
    }
}

/* ELU (mode 1) and rows reflected about the first and the last: dst [C, left + rows + right]. Source: x.
 * A clip too short to reflect is first continued with zeros, as EnCodec does it. */
VP_API void vp_pad(void *dst, int ith, int nth, void *userdata) {
    const struct vp_norm *p = userdata;
    const void *x = tensor_src(dst, 0);
    const int channels = (int)tensor_ne(dst, 0);
    const int64_t rows = tensor_ne(x, 1), out = tensor_ne(dst, 1);
    const int64_t reach = p->left > p->right ? p->left : p->right;
    const int64_t last = (rows > reach ? rows : reach + 1) - 1;
    for (int64_t t = out * ith / nth, end = out * (ith + 1) / nth; t < end; t++) {
        int64_t r = t - p->left;
        if (r < 0) r = -r;
        if (r > last) r = 2 * last - r;
        float *y = tensor_row(dst, t);
        if (r >= rows) {
            memset(y, 0, channels * sizeof(float));
            continue;
        }
        const float *from = tensor_row(x, r);
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
        const float *from = tensor_row(x, t);
        float *y = tensor_row(dst, t);
        for (int k = 0; k < bins; k += VP_LANES) {
            const int n = bins - k;
            vfloat sine, cosine, size = least(exp_lanes(load_some(from + k, n)), splat(100.0f));
            sincos_lanes(load_some(from + bins + k, n), &sine, &cosine);
            store_some(y + k, size * cosine, n);
            store_some(y + bins + k, size * sine, n);
        }
    }
}
