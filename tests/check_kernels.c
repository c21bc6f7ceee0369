/* The kernels without Python and ggml, against sums in double precision: for processors that CI emulates.
 *
 *   cc -O2 -DVP_LANES=4 … tests/check_kernels.c vocoder_plugin/kernels/[a-z]*.c -lm && ./a.out
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vocoder_plugin/kernels/conv1d.h"
#include "../vocoder_plugin/kernels/kernels.h"
#include "../vocoder_plugin/kernels/snake.h"

void vp_conv1d(void *dst, int ith, int nth, void *userdata);
void vp_conv1d_winograd(void *dst, int ith, int nth, void *userdata);
void vp_conv1d_single(void *dst, int ith, int nth, void *userdata);
void vp_window_attention(void *dst, int ith, int nth, void *userdata);
void vp_pack(float *, const float *, const int64_t *, const int64_t *, int32_t, int32_t, int32_t);
void vp_pack_integers(void *, float *, const float *, const int64_t *, const int64_t *, int32_t, int32_t, int32_t);
void vp_set_layout(const struct vp_layout *);
void vp_sine_magnitude(float *, const float *, int64_t);

struct tensor { /* the fields that the kernels read */
    void *data;
    int64_t ne[4];
    size_t nb[4];
    struct tensor *src[10];
};

static uint64_t state = 1;
static float uniform(void) { /* in [-1, 1) */
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((int64_t)(state >> 24) & 0xffffff) / 8388608.0f - 1.0f;
}

static struct tensor make(int64_t a, int64_t b) {
    struct tensor t = {.ne = {a, b, 1, 1}, .nb = {4, 4 * a, 4 * a * b, 4 * a * b}};
    float *values = t.data = calloc((size_t)(a * b + 64), sizeof(float));
    for (int64_t i = 0; i < a * b; i++) values[i] = uniform();
    return t;
}

/* Relative error of one convolution with Snake, "same" padding and 3 threads, one after the other. */
static double check(int in, int out, int kernel, int dilation, int rows, int how) { /* how: 0 float, 1 int16, 2 F(2,7), 3 both, 4 single, 5 int8 weights */
    const int winograd = how == 2 || how == 3, integers = how == 1 || how == 3 || how == 5, single = how == 4;
    const int bytes = how == 5 ? 1 : integers ? 2 : 4;
    struct tensor chunk = make(in, rows), w = make(in * kernel, out), bias = make(out, 1), alpha = make(in, 1), inverse = make(in, 1);
    struct tensor y = make(out, rows), packed = make((int64_t)(in + 16) * 8 * (out + 64), 2), scale = make(8 * (out + 64), 1);
    struct tensor position = make(1, 1);
    float *weight = w.data, *a = alpha.data, *inv = inverse.data;
    *(int32_t *)position.data = 0;
    for (int c = 0; c < in; c++) a[c] = expf(0.5f * a[c]), inv[c] = 1.0f / (a[c] + 1e-9f);
    int taps = kernel;
    if (winograd) { /* the points of each kernel; w is [out][in][kernel] */
        static const double points[7] = {0, 1, -1, 2, -2, 0.5, -0.5};
        float *transformed = malloc(sizeof(float) * out * in * 8);
        for (int i = 0; i < out * in; i++)
            for (int p = 0; p < 8; p++) {
                double sum = p == 7 ? weight[i * 7 + 6] : 0, scale_of = 1;
                for (int q = 0; p < 7 && q < 7; q++)
                    if (q != p) scale_of *= points[p] - points[q];
                for (int j = 0; p < 7 && j < 7; j++) sum += weight[i * 7 + j] * pow(points[p], j) / scale_of;
                transformed[i * 8 + p] = (float)sum;
            }
        weight = transformed, taps = 8;
    }
    const int64_t shape[4] = {1, out, in, taps}, strides[4] = {0, (int64_t)in * taps, taps, 1};
    const int block = integers ? (in > 192 ? 192 : (in + 7) / 8 * 8) : in, together = integers || winograd ? 1 : taps;
    if (single)
        for (int tap = 0; tap < taps; tap++)
            for (int c = 0; c < (in + VP_LANES - 1) / VP_LANES * VP_LANES; c++)
                ((float *)packed.data)[tap * ((in + VP_LANES - 1) / VP_LANES * VP_LANES) + c] = c < in ? weight[c * taps + tap] : 0;
    else if (integers)
        vp_pack_integers(packed.data, scale.data, weight, shape, strides, VP_PANEL, block, bytes);
    else
        vp_pack(packed.data, weight, shape, strides, VP_PANEL, block, together);
    struct vp_conv1d params = {
        .taps = kernel, .dilation = dilation, .stride = 1, .vectors = VP_VECS, .block = block, .together = together, .weight_bytes = bytes,
        .zeros = (kernel / 2) * dilation, .rate = 1, .weight = 0, .scale = integers ? 1 : -1, .bias = 2, .chunk = 3, .history = -1,
        .alpha = 4, .inverse = 5, .skip_chunk = -1, .skip_history = -1, .position = 6,
    };
    struct tensor *sources[] = {&packed, &scale, &bias, &chunk, &alpha, &inverse, &position};
    for (int i = 0; i < 7; i++) y.src[i] = sources[i];
    for (int thread = 0; thread < 3; thread++)
        (single ? vp_conv1d_single : winograd ? vp_conv1d_winograd : vp_conv1d)(&y, thread, 3, &params);

    double error = 0, norm = 0;
    const float *x = chunk.data;
    weight = w.data;
    for (int t = 0; t < rows; t++)
        for (int o = 0; o < out; o++) {
            double sum = ((float *)bias.data)[o];
            for (int j = 0; j < kernel; j++) {
                const int r = t + (j - kernel / 2) * dilation;
                for (int c = 0; r >= 0 && r < rows && c < in; c++) {
                    const double v = x[r * in + c], s = sin(a[c] * v);
                    sum += weight[((int64_t)o * in + c) * kernel + j] * (v + s * s * inv[c]);
                }
            }
            const double d = ((float *)y.data)[t * out + o] - sum;
            error += d * d, norm += sum * sum;
        }
    return sqrt(error / norm);
}

/* Relative error of attention over a sliding window, positions pushed in chunks of 1, 2, … , `chunk`, 1, … */
static double check_attention(int heads, int size, int window, int chunk, int length) {
    struct { int32_t heads, window, capacity, layer; } params = {heads, window, (window - 1 + chunk + 15) / 16 * 16, 0};
    const int channels = heads * size, half = size / 2;
    struct tensor qkv = make(3 * channels, length), turns = make(size, length), y = make(channels, length);
    float *ring = calloc((size_t)params.capacity * 2 * channels, sizeof(float)), *turn = turns.data;
    for (int t = 0; t < length; t++)
        for (int i = 0; i < half; i++) {
            const double angle = t * pow(100.0, -(double)i / half);
            turn[t * size + i] = (float)cos(angle), turn[t * size + half + i] = (float)sin(angle);
        }
    for (int first = 0, n = 1; first < length; first += n, n = n % chunk + 1) {
        n = n < length - first ? n : length - first;
        int32_t stream[4] = {0, 0, first % params.capacity, first < window - 1 ? first : window - 1};
        const uint64_t address = (uint64_t)(uintptr_t)ring;
        memcpy(stream, &address, sizeof address);
        struct tensor control = {.data = stream, .ne = {4, 1, 1, 1}}, x = qkv, angles = turns, part = y;
        x.data = (float *)qkv.data + first * 3 * channels, angles.data = turn + first * size;
        part.data = (float *)y.data + first * channels, part.ne[1] = n;
        part.src[0] = &x, part.src[1] = &angles, part.src[2] = &control;
        for (int thread = 0; thread < 3; thread++) vp_window_attention(&part, thread, 3, &params);
    }
    double error = 0, norm = 0, *share = malloc(sizeof(double) * (size_t)length);
    for (int t = 0; t < length; t++)
        for (int h = 0; h < channels; h += size) {
            const int oldest = t < window ? 0 : t - window + 1;
            double all = 0;
            for (int j = oldest; j <= t; j++) {
                double score = 0;
                for (int i = 0; i < half; i++) { /* the product of two rotated pairs turns by the difference of their angles */
                    const float *q = (float *)qkv.data + t * 3 * channels + h + i, *k = (float *)qkv.data + (j * 3 + 1) * channels + h + i;
                    const double angle = (t - j) * pow(100.0, -(double)i / half);
                    score += (q[0] * k[0] + q[half] * k[half]) * cos(angle) + (q[half] * k[0] - q[0] * k[half]) * -sin(angle);
                }
                all += share[j] = exp(score / sqrt(size));
            }
            for (int i = 0; i < size; i++) {
                double sum = 0;
                for (int j = oldest; j <= t; j++) sum += share[j] / all * ((float *)qkv.data)[(j * 3 + 2) * channels + h + i];
                const double d = ((float *)y.data)[t * channels + h + i] - sum;
                error += d * d, norm += sum * sum;
            }
        }
    return sqrt(error / norm);
}

int main(void) {
    const struct vp_layout layout = {offsetof(struct tensor, data), offsetof(struct tensor, ne), offsetof(struct tensor, nb), offsetof(struct tensor, src)};
    vp_set_layout(&layout);
    int failed = 0;
    static const int cases[][5] = {{1, 1, 1, 1, 1}, {3, 5, 4, 2, 9}, {16, 17, 7, 1, 33}, {40, 48, 7, 3, 50}, {96, 96, 7, 9, 100}, {200, 64, 7, 1, 30}, {64, 40, 1, 1, 64}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int *c = cases[i];
        for (int how = 0; how < 6; how++) {
            if ((how == 2 || how == 3) && c[2] != 7) continue;
            const double error = check(c[0], how == 4 ? 1 : c[1], c[2], c[3], c[4], how);
            const double allowed = how == 1 ? 5e-4 : how == 5 ? 2e-2 : how == 2 ? 3e-6 : how == 3 ? 2e-3 : 1e-6;
            failed += !(error <= allowed);
            printf("%3d -> %3d, kernel %d, dilation %d, %3d rows, way %d: error %.1e%s\n", c[0], how == 4 ? 1 : c[1], c[2], c[3], c[4], how, error, error <= allowed ? "" : "  FAILED");
        }
    }
    static const int attentions[][5] = {{1, 2, 1, 1, 5}, {3, 10, 7, 4, 40}, {2, 64, 50, 5, 130}, {5, 34, 20, 16, 90}};
    for (size_t i = 0; i < sizeof attentions / sizeof *attentions; i++) {
        const int *c = attentions[i];
        const double error = check_attention(c[0], c[1], c[2], c[3], c[4]);
        failed += !(error <= 2e-6);
        printf("attention, %d heads of %d, window %d: error %.1e%s\n", c[0], c[1], c[2], error, error <= 2e-6 ? "" : "  FAILED");
    }
    float x[4096], s[4096];
    double worst = 0;
    for (int i = 0; i < 4096; i++) x[i] = uniform() * 1000.0f;
    vp_sine_magnitude(s, x, 4096);
    for (int i = 0; i < 4096; i++) worst = fmax(worst, fabs(fabs(s[i]) - fabs(sin(x[i]))));
    printf("sine: error %.1e\n", worst);
    failed += worst > 2e-7;
    return failed != 0;
}
