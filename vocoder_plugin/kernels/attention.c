/* Full attention with one head over a whole clip, exact: every query sees every key.
 *
 * Memory grows with the clip's length, not with its square: a thread keeps the scores of QUERIES queries.
 * Keys and values are packed once a clip, by vp_pack_attention, into the panels that the tiles below read.
 */
#include <stdlib.h>

#include "mathvec.h"

#define QUERIES (4 * VP_ROWS)
#define TERMS 384 /* products summed before they join the total */

struct vp_attention {
    float scale;
    int32_t keys; /* vp_pack_attention: 1 packs keys, 0 values */
};

/* x [C, T] -> keys: [T / VP_PANEL][C][VP_PANEL]; values: [C / VP_PANEL][T][VP_PANEL], filled up with zeros. */
VP_API void vp_pack_attention(void *dst, int ith, int nth, void *userdata) {
    const struct vp_attention *p = userdata;
    const void *x = tensor_src(dst, 0);
    const int64_t channels = tensor_ne(x, 0), rows = tensor_ne(x, 1);
    const int64_t outer = p->keys ? rows : channels, inner = p->keys ? channels : rows;
    const int64_t panels = (outer + VP_PANEL - 1) / VP_PANEL;
    const float *from = (const float *)tensor_data(x);
    for (int64_t i = panels * ith / nth; i < panels * (ith + 1) / nth; i++) {
        float *to = (float *)tensor_data(dst) + i * inner * VP_PANEL;
        const int64_t first = i * VP_PANEL;
        const int width = outer - first < VP_PANEL ? (int)(outer - first) : VP_PANEL;
        if (width < VP_PANEL) memset(to, 0, inner * VP_PANEL * sizeof(float));
        if (p->keys) {
            for (int j = 0; j < width; j++)
                for (int64_t c = 0; c < inner; c++) to[c * VP_PANEL + j] = from[(first + j) * channels + c];
        } else {
            for (int64_t t = 0; t < inner; t++)
                memcpy(to + t * VP_PANEL, from + t * channels + first, width * sizeof(float));
        }
    }
}

/* y[i, :] (+)= sum over k of x[i, k] * panel[k, :] */
VP_INLINE void product(const float *x, int64_t x_step, const float *panel, int terms, float *y, int64_t y_step,
                       int width, int add, const int rows) {
    vfloat acc[VP_ROWS][VP_VECS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VP_VECS; v++) acc[i][v] = (vfloat){0};
    for (int k = 0; k < terms; k++, panel += VP_PANEL) {
        vfloat w[VP_VECS];
        for (int v = 0; v < VP_VECS; v++) w[v] = *(const vfloat *)(panel + v * VP_LANES);
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < VP_VECS; v++) acc[i][v] = multiply_add(w[v], splat(x[i * x_step + k]), acc[i][v]);
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VP_VECS; v++) {
            const int n = width - v * VP_LANES;
            if (n <= 0) continue;
            float *to = y + i * y_step + v * VP_LANES;
            store_some(to, add ? acc[i][v] + load_some(to, n) : acc[i][v], n);
        }
}

static void product_rows(const float *x, int64_t x_step, const float *panel, int terms, float *y, int64_t y_step,
                         int width, int add, int rows) {
    if (rows == VP_ROWS) {
        product(x, x_step, panel, terms, y, y_step, width, add, VP_ROWS);
    } else {
        for (int i = 0; i < rows; i++) product(x + i * x_step, x_step, panel, terms, y + i * y_step, y_step, width, add, 1);
    }
}

/* Scores [n] -> probabilities, their scale applied. */
static void softmax(float *s, int64_t n, float scale) {
    vfloat top = splat(-INFINITY);
    for (int64_t i = 0; i < n; i += VP_LANES) {
        vfloat v = load_some(s + i, n - i < VP_LANES ? (int)(n - i) : VP_LANES);
        for (int j = (int)(n - i); j < VP_LANES; j++) v[j] = -INFINITY;
        top = most(top, v);
    }
    float high = top[0];
    for (int j = 1; j < VP_LANES; j++) high = top[j] > high ? top[j] : high;
    double total = 0;
    for (int64_t i = 0; i < n; i += VP_LANES) {
        const int m = n - i < VP_LANES ? (int)(n - i) : VP_LANES;
        vfloat v = exp_lanes((load_some(s + i, m) - high) * scale);
        for (int j = m; j < VP_LANES; j++) v[j] = 0;
        store_some(s + i, v, m);
        total += sum_lanes(v);
    }
    const float inverse = (float)(1.0 / total);
    for (int64_t i = 0; i < n; i += VP_LANES) {
        const int m = n - i < VP_LANES ? (int)(n - i) : VP_LANES;
        store_some(s + i, load_some(s + i, m) * inverse, m);
    }
}

/* Sources: queries [C, T], packed keys, packed values; dst [C, T]. */
VP_API void vp_attention(void *dst, int ith, int nth, void *userdata) {
    const struct vp_attention *p = userdata;
    const void *query = tensor_src(dst, 0);
    const float *keys = (const float *)tensor_data(tensor_src(dst, 1));
    const float *values = (const float *)tensor_data(tensor_src(dst, 2));
    const int64_t channels = tensor_ne(dst, 0), rows = tensor_ne(dst, 1);
    const int64_t panels = (rows + VP_PANEL - 1) / VP_PANEL, step = panels * VP_PANEL;
    const int64_t tiles = (rows + VP_ROWS - 1) / VP_ROWS;
    const int64_t end = tiles * (ith + 1) / nth * VP_ROWS < rows ? tiles * (ith + 1) / nth * VP_ROWS : rows;
    float *scores = malloc(step * QUERIES * sizeof(float));
    if (!scores) abort();
    for (int64_t q = tiles * ith / nth * VP_ROWS; q < end; q += QUERIES) {
        const int count = end - q < QUERIES ? (int)(end - q) : QUERIES;
        const float *x = (const float *)tensor_data(query) + q * channels;
        float *y = (float *)tensor_data(dst) + q * channels;
        for (int64_t i = 0; i < panels; i++)
            for (int64_t k = 0; k < channels; k += TERMS)
                for (int r = 0; r < count; r += VP_ROWS)
                    product_rows(x + r * channels + k, channels, keys + (i * channels + k) * VP_PANEL,
                                 (int)(channels - k < TERMS ? channels - k : TERMS), scores + r * step + i * VP_PANEL,
                                 step, VP_PANEL, k > 0, count - r < VP_ROWS ? count - r : VP_ROWS);
        for (int r = 0; r < count; r++) softmax(scores + r * step, rows, p->scale);
        for (int64_t k = 0; k < rows; k += TERMS)
            for (int64_t c = 0; c < channels; c += VP_PANEL)
                for (int r = 0; r < count; r += VP_ROWS)
                    product_rows(scores + r * step + k, step, values + (c / VP_PANEL * rows + k) * VP_PANEL,
                                 (int)(rows - k < TERMS ? rows - k : TERMS), y + r * channels + c, channels,
                                 (int)(channels - c < VP_PANEL ? channels - c : VP_PANEL), k > 0,
                                 count - r < VP_ROWS ? count - r : VP_ROWS);
    }
    free(scores);
}
