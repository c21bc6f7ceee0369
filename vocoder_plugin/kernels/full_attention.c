/* Full attention over a whole clip, exact: every query sees every key. Heads of equal size lie side by side in a row.
 *
 * Memory grows with the clip's length, not with its square: a thread keeps the scores of QUERIES queries.
 * Keys and values are packed once a clip, by vp_pack_attention, into the panels that the tiles below read.
 */
#include <stdlib.h>

#include "mathvec.h"
#include "params.h"

#define QUERIES (4 * VP_ROWS)
#define TERMS 384 /* products summed before they join the total */

/* x [C, T] -> for each head, of D channels, keys: [T / VP_PANEL][D][VP_PANEL]; values: [D / VP_PANEL][T][VP_PANEL];
 * filled up with zeros. */
VP_API void vp_pack_attention(void *dst, int ith, int nth, void *userdata) {
    const struct vp_attention *p = userdata;
    const void *x = tensor_src(dst, 0);
    const int64_t size = tensor_ne(x, 0) / p->heads, rows = tensor_ne(x, 1);
    const int64_t step = tensor_nb(x, 1) / sizeof(float);
    const int64_t outer = p->keys ? rows : size, inner = p->keys ? size : rows;
    const int64_t panels = (outer + VP_PANEL - 1) / VP_PANEL, total = panels * p->heads;
    for (int64_t i = total * ith / nth; i < total * (ith + 1) / nth; i++) {
        float *to = (float *)tensor_data(dst) + i * inner * VP_PANEL;
        const int64_t channel = i / panels * size, first = i % panels * VP_PANEL;
        const int width = outer - first < VP_PANEL ? (int)(outer - first) : VP_PANEL;
        if (width < VP_PANEL) memset(to, 0, inner * VP_PANEL * sizeof(float));
        if (p->keys) {
            for (int j = 0; j < width; j++) {
                const float *from = tensor_row(x, 0) + (first + j) * step + channel;
                for (int64_t c = 0; c < inner; c++) to[c * VP_PANEL + j] = from[c];
            }
        } else {
            const float *from = tensor_row(x, 0) + channel + first;
            for (int64_t t = 0; t < inner; t++) memcpy(to + t * VP_PANEL, from + t * step, width * sizeof(float));
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
    const float high = greatest_lane(top);
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

/* Sources: queries [C, T], packed keys, packed values; dst [C, T]. Threads share the tiles of queries of all heads. */
VP_API void vp_attention(void *dst, int ith, int nth, void *userdata) {
    const struct vp_attention *p = userdata;
    const void *query = tensor_src(dst, 0);
    const int64_t size = tensor_ne(dst, 0) / p->heads, rows = tensor_ne(dst, 1);
    const int64_t panels = (rows + VP_PANEL - 1) / VP_PANEL, step = panels * VP_PANEL;
    const int64_t value_floats = (size + VP_PANEL - 1) / VP_PANEL * VP_PANEL * rows; /* of a head */
    const int64_t x_step = tensor_nb(query, 1) / sizeof(float), y_step = tensor_nb(dst, 1) / sizeof(float);
    const int64_t tiles = (rows + VP_ROWS - 1) / VP_ROWS, total = tiles * p->heads, end = total * (ith + 1) / nth;
    float *scores = malloc(step * QUERIES * sizeof(float));
    if (!scores) abort();
    for (int64_t tile = total * ith / nth, next; tile < end; tile = next) {
        const int64_t head = tile / tiles, first = tile % tiles, left = end - tile < tiles - first ? end - tile : tiles - first;
        next = tile + (left < QUERIES / VP_ROWS ? left : QUERIES / VP_ROWS);
        const int64_t q = first * VP_ROWS;
        const int count = (int)(rows - q < (next - tile) * VP_ROWS ? rows - q : (next - tile) * VP_ROWS);
        const float *keys = (const float *)tensor_data(tensor_src(dst, 1)) + head * step * size;
        const float *values = (const float *)tensor_data(tensor_src(dst, 2)) + head * value_floats;
        const float *x = tensor_row(query, q) + head * size;
        float *y = tensor_row(dst, q) + head * size;
        for (int64_t i = 0; i < panels; i++)
            for (int64_t k = 0; k < size; k += TERMS)
                for (int r = 0; r < count; r += VP_ROWS)
                    product_rows(x + r * x_step + k, x_step, keys + (i * size + k) * VP_PANEL,
                                 (int)(size - k < TERMS ? size - k : TERMS), scores + r * step + i * VP_PANEL,
                                 step, VP_PANEL, k > 0, count - r < VP_ROWS ? count - r : VP_ROWS);
        for (int r = 0; r < count; r++) softmax(scores + r * step, rows, p->scale);
        for (int64_t k = 0; k < rows; k += TERMS)
            for (int64_t c = 0; c < size; c += VP_PANEL)
                for (int r = 0; r < count; r += VP_ROWS)
                    product_rows(scores + r * step + k, step, values + (c / VP_PANEL * rows + k) * VP_PANEL,
                                 (int)(rows - k < TERMS ? rows - k : TERMS), y + r * y_step + c, y_step,
                                 (int)(size - c < VP_PANEL ? size - c : VP_PANEL), k > 0,
                                 count - r < VP_ROWS ? count - r : VP_ROWS);
    }
    free(scores);
}
