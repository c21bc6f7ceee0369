/* Products of 16-bit integers, two at a time (vpdpwssd and its likes): twice the products of floats.
 * Weights may be kept in 8 bits, for passes so short that reading them is what takes the time.
 *
 * Each row of inputs has one scale, each output of each tap (or point of winograd.c) another. Inputs are
 * integers up to INPUT_MAX. Weights are scaled so that the sum of a block's magnitudes is at most
 * WEIGHT_SUM: no sum of products can overflow 32 bits, whatever the inputs. Sums are exact, so all
 * instruction sets give the same samples but for the floating-point steps around them.
 */
#include <math.h>

#include "rows.h"
#include "tile.h"

#define WEIGHT_SUM ((double)INT32_MAX / (INPUT_MAX + 1))

typedef int16_t vshort __attribute__((vector_size(4 * VP_LANES), aligned(2))); /* pairs */
typedef int8_t vbyte __attribute__((vector_size(2 * VP_LANES), aligned(1))); /* pairs */

VP_INLINE vint multiply_pairs(vint sum, vshort w, int32_t x) {
#if defined(__AVX512VNNI__)
    return (vint)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX512BW__)
    return sum + (vint)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    return sum + (vint)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(x));
#elif defined(__SSE2__)
    return sum + (vint)_mm_madd_epi16((__m128i)w, _mm_set1_epi32(x));
#elif defined(__aarch64__)
    const int16x8_t pair = vreinterpretq_s16_s32(vdupq_n_s32(x));
    const int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)w), vget_low_s16(pair));
    return sum + (vint)vpaddq_s32(low, vmull_high_s16((int16x8_t)w, pair));
#else
    int16_t pair[2];
    memcpy(pair, &x, sizeof pair);
    for (int i = 0; i < VP_LANES; i++) sum[i] += (int32_t)w[2 * i] * pair[0] + (int32_t)w[2 * i + 1] * pair[1];
    return sum;
#endif
}

VP_INLINE vshort load_weights(const char *w, const int bytes) {
    return bytes == 2 ? *(const vshort *)w : __builtin_convertvector(*(const vbyte *)w, vshort);
}

VP_INLINE void tile(const struct tile_args *a, const int rows, const int vectors, const int bytes) {
    vint acc[VP_TALL_ROWS][VP_VECS];
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < vectors; k++) acc[i][k] = (vint){0};

    const char *w = a->weight;
    const int16_t *row[(VP_TALL_ROWS + 2) / 3];
    const size_t step = a->row_step;
    for (int i = 0; i < rows; i += 3) row[i / 3] = (const int16_t *)a->x + i * step;
#pragma GCC unroll 4
    for (int c = 0; c < a->channels; c += 2, w += 2 * vectors * VP_LANES * bytes) {
        vshort wv[VP_VECS];
        for (int k = 0; k < vectors; k++) wv[k] = load_weights(w + k * 2 * VP_LANES * bytes, bytes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            int32_t x;
            memcpy(&x, &row[i / 3][(i % 3) * step + c], sizeof x);
            for (int k = 0; k < vectors; k++) acc[i][k] = multiply_pairs(acc[i][k], wv[k], x);
        }
    }
    for (int i = 0; i < rows; i++) {
        vfloat sum[VP_VECS];
        const float x_scale = a->x_scale[i * a->scale_step];
        for (int k = 0; k < vectors; k++) {
            const vfloat w_scale = *(const vfloat *)(a->weight_scale + k * VP_LANES);
            sum[k] = __builtin_convertvector(acc[i][k], vfloat) * x_scale * w_scale;
        }
        finish_row(a, i, sum, vectors);
    }
}

#define TILE_INT16(a, rows, vectors) tile(a, rows, vectors, 2)
#define TILE_INT8(a, rows, vectors) tile(a, rows, vectors, 1)
void tile_int16(const struct tile_args *a, int rows) { VP_SWITCH_TILE(TILE_INT16, rows) }
void tile_int8(const struct tile_args *a, int rows) { VP_SWITCH_TILE(TILE_INT8, rows) }

/* weight: [phases, out, in, taps] with strides in floats; output o of phase p becomes p * out + o.
 * target: integers of 2 or 1 bytes [panel][tap][block][channel / 2][output][2]; scale: [panel][tap][output]. */
VP_API void vp_pack_integers(void *target, float *scale, const float *weight, const int64_t shape[4],
                             const int64_t strides[4], int32_t panel, int32_t block, int32_t bytes) {
    const double largest = bytes == 2 ? INT16_MAX : INT8_MAX;
    int16_t *wide = target;
    int8_t *narrow = target;
    const int64_t outputs = shape[0] * shape[1], channels = shape[2];
    for (int64_t first = 0; first < outputs; first += panel) {
        for (int64_t tap = 0; tap < shape[3]; tap++, scale += panel) {
            const float *row[VP_PANEL];
            float factor[VP_PANEL];
            for (int i = 0; i < panel; i++) {
                const int64_t o = first + i;
                row[i] = o < outputs ? weight + o / shape[1] * strides[0] + o % shape[1] * strides[1] + tap * strides[3] : NULL;
                double step = 0;
                for (int64_t c0 = 0; row[i] && c0 < channels; c0 += block) {
                    double sum = 0, most = 0;
                    for (int64_t c = c0; c < channels && c < c0 + block; c++) {
                        const double magnitude = fabs(row[i][c * strides[2]]);
                        sum += magnitude;
                        if (magnitude > most) most = magnitude;
                    }
                    step = fmax(step, fmax(sum / (WEIGHT_SUM - block), most / largest)); /* rounding adds < block */
                }
                factor[i] = step > 1e-30 ? (float)(1 / step) : 0.0f;
                scale[i] = (float)step;
            }
            for (int64_t c0 = 0; c0 < channels; c0 += block)
                for (int64_t c = c0; c < channels && c < c0 + block; c += 2)
                    for (int i = 0; i < panel; i++)
                        for (int64_t j = c; j < c + 2; j++) {
                            const long value = row[i] && j < channels ? lrintf(row[i][j * strides[2]] * factor[i]) : 0;
                            if (bytes == 2)
                                *wide++ = (int16_t)value;
                            else
                                *narrow++ = (int8_t)value;
                        }
        }
    }
}
