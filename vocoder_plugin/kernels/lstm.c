/* The recurrent part of an LSTM layer: gates of a step need the outputs of the step before.
 *
 *   i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of x[t] + W h[t - 1];  c = f c + i g;  h[t] = o tanh(c)
 *
 * A thread owns a range of units for the whole clip, so that its part of W stays in its cache; threads wait
 * for each other after every step. W is packed [units / VP_LANES][H][4 gates][VP_LANES] by vp_pack_lstm.
 */
#include <stdlib.h>
#if !defined(_WIN32)
#include <sched.h>
#endif

#include "mathvec.h"
#include "params.h"

/* weight: [4 * size, size], rows by gate i, f, g, o. */
VP_API void vp_pack_lstm(float *target, const float *weight, int64_t size) {
    for (int64_t u = 0; u < size; u += VP_LANES)
        for (int64_t k = 0; k < size; k++)
            for (int gate = 0; gate < 4; gate++)
                for (int i = 0; i < VP_LANES; i++)
                    *target++ = u + i < size ? weight[(gate * size + u + i) * size + k] : 0.0f;
}

static void wait_for(atomic_int *count, int goal) {
    for (int spins = 0; atomic_load_explicit(count, memory_order_acquire) < goal; spins++) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
#if !defined(_WIN32)
        if (spins > 2000) sched_yield();
#endif
    }
}

/* Sources: input gates [4 H, T] with both biases in them, packed W, the state before [H, 2]: h, then c.
 * dst [H, T + 1]: outputs, and in its last row the cells after the last step. */
VP_API void vp_lstm(void *dst, int ith, int nth, void *userdata) {
    struct vp_lstm *p = userdata;
    const void *input = tensor_src(dst, 0);
    const float *weight = (const float *)tensor_data(tensor_src(dst, 1));
    const float *before = (const float *)tensor_data(tensor_src(dst, 2));
    const int size = (int)tensor_ne(dst, 0);
    const int64_t steps = tensor_ne(dst, 1) - 1;
    const int blocks = (size + VP_LANES - 1) / VP_LANES;
    const int b0 = blocks * ith / nth, b1 = blocks * (ith + 1) / nth;
    float *out = (float *)tensor_data(dst), *cells = out + steps * size;
    for (int u = b0 * VP_LANES; u < b1 * VP_LANES && u < size; u++) cells[u] = before[size + u];
    for (int64_t t = 0; t < steps; t++) {
        const float *x = (const float *)tensor_data(input) + t * 4 * size;
        const float *h = t ? out + (t - 1) * size : before;
        float *y = out + t * size;
        for (int b = b0; b < b1; b++) {
            const float *w = weight + (int64_t)b * size * 4 * VP_LANES;
            const int u = b * VP_LANES, n = size - u < VP_LANES ? size - u : VP_LANES;
            vfloat even[4], odd[4];
            for (int gate = 0; gate < 4; gate++) {
                even[gate] = load_some(x + gate * size + u, n);
                odd[gate] = (vfloat){0};
            }
            int k = 0;
            for (; k + 2 <= size; k += 2, w += 8 * VP_LANES)
                for (int gate = 0; gate < 4; gate++) {
                    even[gate] = multiply_add(*(const vfloat *)(w + gate * VP_LANES), splat(h[k]), even[gate]);
                    odd[gate] = multiply_add(*(const vfloat *)(w + (4 + gate) * VP_LANES), splat(h[k + 1]), odd[gate]);
                }
            if (k < size)
                for (int gate = 0; gate < 4; gate++)
                    even[gate] = multiply_add(*(const vfloat *)(w + gate * VP_LANES), splat(h[k]), even[gate]);
            vfloat i = sigmoid_lanes(even[0] + odd[0]), f = sigmoid_lanes(even[1] + odd[1]);
            vfloat g = tanh_lanes(even[2] + odd[2]), o = sigmoid_lanes(even[3] + odd[3]);
            vfloat c = f * load_some(cells + u, n) + i * g;
            store_some(cells + u, c, n);
            store_some(y + u, o * tanh_lanes(c), n);
        }
        if (nth > 1) {
            atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel);
            wait_for(&p->arrived, (int)(t + 1) * nth);
        }
    }
    if (nth > 1 && atomic_fetch_add(&p->left, 1) == nth - 1) { /* the last to leave makes ready for the next run */
        atomic_store(&p->arrived, 0);
        atomic_store(&p->left, 0);
    }
}
