/* Causal attention of several heads over a sliding window, with keys and values in a ring per stream.
 *
 * A stream's ring holds, for every layer, the rotated keys and the values of its last `capacity` positions:
 * [layer][capacity][2 * channels]. It belongs to the stream and is written in place, so a step copies nothing;
 * its address comes with the step's inputs. Every output is the same sequence of operations, from the window's
 * oldest position to its newest, however the stream is cut into chunks: results are bit-identical.
 */
#include <stdlib.h>

#include "mathvec.h"

/* Mirrored by kernels/window.py. */
struct vp_window_attention {
    int32_t heads, window, capacity, layer;
};

/* One stream of the batch, in `control` [4, batch]. */
struct stream {
    uint32_t low, high; /* of the ring's address */
    int32_t slot;       /* of the chunk's first position in the ring */
    int32_t past;       /* positions before the chunk that can be seen, at most window - 1 */
};

VP_INLINE float *ring_of(const struct stream *s, const struct vp_window_attention *p, int channels) {
    float *ring = (float *)(uintptr_t)((uint64_t)s->high << 32 | s->low);
    return ring + (size_t)p->layer * p->capacity * 2 * channels;
}

/* y = x rotated by the angles whose cosines and sines are `turn`: [half] and [half] of each head's halves. */
static void rotate(float *y, const float *x, const float *turn, int half) {
    for (int i = 0; i < half; i += VP_LANES) {
        const int n = half - i;
        vfloat a = load_some(x + i, n), b = load_some(x + half + i, n);
        vfloat c = load_some(turn + i, n), s = load_some(turn + half + i, n);
        store_some(y + i, a * c - b * s, n);
        store_some(y + half + i, b * c + a * s, n);
    }
}

/* Sources: q, k, v of each position [3 C, T, B]; turns [D, T, B]; control [4, B]. Keeps rotated keys and the values
 * in the ring; dst [C, T, B]: rotated queries. */
VP_API void vp_window_store(void *dst, int ith, int nth, void *userdata) {
    const struct vp_window_attention *p = userdata;
    const void *qkv = tensor_src(dst, 0), *turns = tensor_src(dst, 1);
    const struct stream *streams = (const struct stream *)tensor_data(tensor_src(dst, 2));
    const int channels = (int)tensor_ne(dst, 0), size = channels / p->heads;
    const int64_t rows = tensor_ne(dst, 1), total = rows * tensor_ne(dst, 2);
    for (int64_t i = total * ith / nth; i < total * (ith + 1) / nth; i++) {
        const int64_t b = i / rows, t = i % rows;
        const float *x = (const float *)tensor_data(qkv) + i * 3 * channels;
        const float *turn = (const float *)tensor_data(turns) + i * size;
        float *ring = ring_of(&streams[b], p, channels) + (size_t)((streams[b].slot + t) % p->capacity) * 2 * channels;
        float *y = (float *)tensor_data(dst) + i * channels;
        for (int h = 0; h < channels; h += size) {
            rotate(y + h, x + h, turn, size / 2);
            rotate(ring + h, x + channels + h, turn, size / 2);
        }
        memcpy(ring + channels, x + 2 * channels, channels * sizeof(float));
    }
}

VP_INLINE float add_lanes(vfloat v) { /* in pairs: fewer steps than one by one */
    for (int half = VP_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

#define BAND 4 /* vectors of one head's values that are summed at once */

/* Sources: rotated queries [C, T, B]; control [4, B]. dst [C, T, B]. */
VP_API void vp_window_attention(void *dst, int ith, int nth, void *userdata) {
    const struct vp_window_attention *p = userdata;
    const void *queries = tensor_src(dst, 0);
    const struct stream *streams = (const struct stream *)tensor_data(tensor_src(dst, 1));
    const int channels = (int)tensor_ne(dst, 0), size = channels / p->heads;
    const int64_t rows = tensor_ne(dst, 1), total = rows * tensor_ne(dst, 2) * p->heads;
    const float scale = 1.0f / sqrtf((float)size);
    const int padded = (p->window + VP_LANES - 1) / VP_LANES * VP_LANES;
    float *score = malloc(padded * sizeof(float));
    const float **key = malloc(p->window * sizeof(float *));
    if (!score || !key) abort();
    for (int64_t i = total * ith / nth; i < total * (ith + 1) / nth; i++) {
        const int64_t row = i / p->heads, b = row / rows, t = row % rows;
        const int h = (int)(i % p->heads) * size;
        const float *x = (const float *)tensor_data(queries) + row * channels + h;
        const float *ring = ring_of(&streams[b], p, channels) + h;
        const int64_t seen = streams[b].past + t + 1;
        const int n = seen < p->window ? (int)seen : p->window;
        int64_t slot = (streams[b].slot + t - (n - 1)) % p->capacity;
        if (slot < 0) slot += p->capacity;
        float high = -INFINITY;
        for (int j = 0; j < n; j++) {
            key[j] = ring + (size_t)slot * 2 * channels;
            if (++slot == p->capacity) slot = 0;
            vfloat sum[2] = {{0}, {0}};
            for (int d = 0; d < size; d += VP_LANES)
                sum[d / VP_LANES % 2] = multiply_add(load_some(x + d, size - d), load_some(key[j] + d, size - d),
                                                     sum[d / VP_LANES % 2]);
            score[j] = add_lanes(sum[0] + sum[1]) * scale;
            high = score[j] > high ? score[j] : high;
        }
        for (int j = n; j < padded && j % VP_LANES; j++) score[j] = -INFINITY;
        vfloat all = {0};
        for (int j = 0; j < n; j += VP_LANES) {
            const vfloat e = exp_lanes(*(const vfloat *)(score + j) - high);
            *(vfloat *)(score + j) = e;
            all += e;
        }
        const float share = 1.0f / add_lanes(all);
        float *y = (float *)tensor_data(dst) + row * channels + h;
        int d = 0;
        for (; d + BAND * VP_LANES <= size; d += BAND * VP_LANES) {
            vfloat acc[BAND] = {{0}};
            for (int j = 0; j < n; j++) {
                const float *value = key[j] + channels + d;
                const vfloat s = splat(score[j]);
                for (int v = 0; v < BAND; v++) acc[v] = multiply_add(s, *(const vfloat *)(value + v * VP_LANES), acc[v]);
            }
            for (int v = 0; v < BAND; v++) *(vfloat *)(y + d + v * VP_LANES) = acc[v] * share;
        }
        for (; d < size; d += VP_LANES) {
            vfloat acc = {0};
            for (int j = 0; j < n; j++) acc = multiply_add(splat(score[j]), load_some(key[j] + channels + d, size - d), acc);
            store_some(y + d, acc * share, size - d);
        }
    }
    free(key);
    free(score);
}
