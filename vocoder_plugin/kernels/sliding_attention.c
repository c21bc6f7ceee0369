/* Causal attention of several heads over a sliding window, with keys and values in a ring per stream.
 *
 * A stream's ring holds, for every layer and head, the rotated keys and the values of its last `capacity`
 * positions, position p in slot p % capacity: keys [capacity / VP_LANES][size][VP_LANES], so that a vector of
 * scores needs no sum over lanes, then values [capacity][size]. It belongs to the stream and is written in place,
 * so a step copies nothing; its address comes with the step's inputs.
 *
 * Sums go over slots in their order, and slots that a position does not see add zeros or nothing. What a position
 * gets thus depends on its number alone, and results are bit-identical however the stream is cut into chunks.
 */
#include <stdlib.h>

#include "mathvec.h"
#include "params.h"

struct head {
    float *keys, *values;
    int size, capacity;
};

struct run { /* of slots, or of blocks of VP_LANES slots */
    int first, end;
};

#define QUERIES 2 /* positions that look at once: keys and values are loaded once for them */
#define BLOCKS 4  /* of keys, scored at once */
#define BAND 4    /* vectors of values, summed at once */

VP_INLINE struct head head_of(const struct vp_stream *s, const struct vp_sliding_attention *p, int h, int size) {
    float *keys = (float *)(uintptr_t)((uint64_t)s->high << 32 | s->low);
    keys += p->offset + (size_t)h * 2 * p->capacity * size;
    return (struct head){keys, keys + (size_t)p->capacity * size, size, p->capacity};
}

/* y = x rotated by the angles whose cosines and sines are `turn`: [half] and [half]. */
static void rotate(float *y, const float *x, const float *turn, int half) {
    for (int i = 0; i < half; i += VP_LANES) {
        const int n = half - i;
        vfloat a = load_some(x + i, n), b = load_some(x + half + i, n);
        vfloat c = load_some(turn + i, n), s = load_some(turn + half + i, n);
        store_some(y + i, a * c - b * s, n);
        store_some(y + half + i, b * c + a * s, n);
    }
}

static void keep(const struct head *head, int slot, const float *key, const float *value) {
    float *block = head->keys + (size_t)(slot / VP_LANES) * head->size * VP_LANES + slot % VP_LANES;
    for (int d = 0; d < head->size; d++) block[d * VP_LANES] = key[d];
    memcpy(head->values + (size_t)slot * head->size, value, head->size * sizeof(float));
}

/* The slots of the last `seen` positions up to the one in slot `newest`, in order: up to two runs. */
static int find_runs(struct run *runs, int newest, int seen, int capacity) {
    const int oldest = newest - seen + 1;
    runs[0] = (struct run){oldest < 0 ? 0 : oldest, newest + 1};
    runs[1] = (struct run){oldest + capacity, capacity};
    return oldest < 0 ? 2 : 1;
}

VP_INLINE void score_blocks(float *scores, const float *queries, const struct head *head, int block, const int blocks,
                            const int count) {
    const float *keys = head->keys + (size_t)block * head->size * VP_LANES;
    vfloat sum[QUERIES][BLOCKS] = {{{0}}};
    for (int d = 0; d < head->size; d++)
        for (int b = 0; b < blocks; b++) {
            const vfloat key = *(const vfloat *)(keys + ((size_t)b * head->size + d) * VP_LANES);
            for (int i = 0; i < count; i++) sum[i][b] = multiply_add(splat(queries[i * head->size + d]), key, sum[i][b]);
        }
    for (int i = 0; i < count; i++)
        for (int b = 0; b < blocks; b++)
            *(vfloat *)(scores + (size_t)i * head->capacity + (block + b) * VP_LANES) = sum[i][b];
}

/* In place, over the blocks given; slots beyond the last `seen` up to `newest` get 0. Returns 1 / the sum. */
static float exponentiate(float *scores, const struct run *blocks, int n_blocks, int newest, int seen, int capacity) {
    vint lane;
    for (int i = 0; i < VP_LANES; i++) lane[i] = i;
    vfloat high = splat(-INFINITY), all = {0};
    for (int r = 0; r < n_blocks; r++)
        for (int b = blocks[r].first; b < blocks[r].end; b++) {
            vfloat *score = (vfloat *)(scores + b * VP_LANES);
            vint age = newest - b * VP_LANES - lane;
            age += (age < 0) & capacity;
            *score = choose(age < seen, *score, splat(-INFINITY));
            high = most(high, *score);
        }
    const float top = greatest_lane(high);
    for (int r = 0; r < n_blocks; r++)
        for (int b = blocks[r].first; b < blocks[r].end; b++) {
            vfloat *score = (vfloat *)(scores + b * VP_LANES);
            *score = exp_lanes(*score - top);
            all += *score;
        }
    return 1.0f / sum_lanes(all);
}

VP_INLINE void add_values(float *y, size_t step, const float *weights, const float *share, const struct head *head,
                          const struct run *runs, int n_runs, int d, const int vectors, const int count) {
    const int n = head->size - d;
    vfloat sum[QUERIES][BAND] = {{{0}}};
    for (int r = 0; r < n_runs; r++)
        for (int j = runs[r].first; j < runs[r].end; j++)
            for (int v = 0; v < vectors; v++) {
                const float *at = head->values + (size_t)j * head->size + d + v * VP_LANES;
                const vfloat value = vectors > 1 ? *(const vfloat *)at : load_some(at, n);
                for (int i = 0; i < count; i++)
                    sum[i][v] = multiply_add(splat(weights[(size_t)i * head->capacity + j]), value, sum[i][v]);
            }
    for (int i = 0; i < count; i++)
        for (int v = 0; v < vectors; v++) store_some(y + i * step + d + v * VP_LANES, sum[i][v] * share[i], n - v * VP_LANES);
}

/* `count` positions, the first in slot `slot`, which sees `seen`: y [count] rows, `step` apart. */
VP_INLINE void attend(float *y, size_t step, const float *queries, float *scores, const struct head *head, int slot, int seen,
                      int window, const int count) {
    struct run runs[2], blocks[2];
    const int n = find_runs(runs, (slot + count - 1) % head->capacity, seen + count - 1, head->capacity);
    for (int r = 0; r < n; r++) {
        blocks[r] = (struct run){runs[r].first / VP_LANES, (runs[r].end + VP_LANES - 1) / VP_LANES};
        if (r && blocks[1].first < blocks[0].end) blocks[1].first = blocks[0].end;
        int b = blocks[r].first;
        for (; b + BLOCKS <= blocks[r].end; b += BLOCKS) score_blocks(scores, queries, head, b, BLOCKS, count);
        for (; b < blocks[r].end; b++) score_blocks(scores, queries, head, b, 1, count);
    }
    float share[QUERIES];
    for (int i = 0; i < count; i++) {
        const int sees = seen + i < window ? seen + i : window;
        share[i] = exponentiate(scores + (size_t)i * head->capacity, blocks, n, (slot + i) % head->capacity, sees,
                                head->capacity);
    }
    int d = 0;
    for (; d + BAND * VP_LANES <= head->size; d += BAND * VP_LANES)
        add_values(y, step, scores, share, head, runs, n, d, BAND, count);
    for (; d < head->size; d += VP_LANES) add_values(y, step, scores, share, head, runs, n, d, 1, count);
}

static const float *row_at(const void *x, int64_t batch, int t, int channel) {
    return (const float *)(tensor_data(x) + batch * tensor_nb(x, 2) + t * tensor_nb(x, 1)) + channel;
}

/* Sources: q, k, v [C, T, B], whatever the step from row to row; turns [D, T, B]; control [4, B]: a struct vp_stream
 * each. dst [C, T, B]. Keeps rotated keys and the values in the ring. A thread takes whole heads: nobody waits for
 * others' keys. */
VP_API void vp_sliding_attention(void *dst, int ith, int nth, void *userdata) {
    const struct vp_sliding_attention *p = userdata;
    const void *q = tensor_src(dst, 0), *k = tensor_src(dst, 1), *v = tensor_src(dst, 2), *turns = tensor_src(dst, 3);
    const struct vp_stream *streams = (const struct vp_stream *)tensor_data(tensor_src(dst, 4));
    const int channels = (int)tensor_ne(dst, 0), size = channels / p->heads;
    const int rows = (int)tensor_ne(dst, 1);
    const int64_t total = tensor_ne(dst, 2) * p->heads;
    const float scale = 1.0f / sqrtf((float)size);
    float *scores = malloc(QUERIES * ((size_t)p->capacity + size) * sizeof(float));
    if (!scores) abort();
    float *rotated = scores + (size_t)QUERIES * p->capacity;
    for (int64_t item = total * ith / nth; item < total * (ith + 1) / nth; item++) {
        const int64_t b = item / p->heads;
        const int h = (int)(item % p->heads), channel = h * size;
        const struct vp_stream *stream = &streams[b];
        const struct head head = head_of(stream, p, h, size);
        for (int t = 0; t < rows; t++) {
            rotate(rotated, row_at(k, b, t, channel), row_at(turns, b, t, 0), size / 2);
            keep(&head, (stream->slot + t) % p->capacity, rotated, row_at(v, b, t, channel));
        }
        for (int t = 0; t < rows; t += QUERIES) {
            const int count = rows - t < QUERIES ? rows - t : QUERIES, slot = (stream->slot + t) % p->capacity;
            const int seen = stream->past + t + 1 < p->window ? stream->past + t + 1 : p->window;
            for (int i = 0; i < count; i++) {
                float *query = rotated + i * size;
                rotate(query, row_at(q, b, t + i, channel), row_at(turns, b, t + i, 0), size / 2);
                for (int d = 0; d < size; d++) query[d] *= scale;
            }
            float *y = (float *)row_at(dst, b, t, channel);
            if (count == QUERIES)
                attend(y, channels, rotated, scores, &head, slot, seen, p->window, QUERIES);
            else
                attend(y, channels, rotated, scores, &head, slot, seen, p->window, 1);
        }
    }
    free(scores);
}
