/* The kernels without Python and ggml, against plain loops in double precision: for processors that CI emulates.
 *
 *   cc -O2 -DVP_LANES=4 … tests/check_kernels.c vocoder_plugin/kernels/[a-z]*.c -lm -pthread && ./a.out
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vocoder_plugin/kernels/kernels.h"
#include "../vocoder_plugin/kernels/params.h"

typedef void operation(void *dst, int ith, int nth, void *userdata);
operation vp_conv1d, vp_conv1d_winograd, vp_conv1d_single, vp_layer_norm, vp_group_norm, vp_gelu, vp_pad, vp_polar;
operation vp_pack_attention, vp_attention, vp_sliding_attention, vp_lstm;
void vp_pack(float *, const float *, const int64_t *, const int64_t *, int32_t, int32_t, int32_t);
void vp_pack_integers(void *, float *, const float *, const int64_t *, const int64_t *, int32_t, int32_t, int32_t);
void vp_pack_lstm(float *, const float *, int64_t);
void vp_set_layout(const struct vp_layout *);

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

static struct tensor columns(const struct tensor *t, int first, int width) { /* a view */
    struct tensor view = *t;
    view.data = (float *)t->data + first, view.ne[0] = width;
    return view;
}

static double at(const struct tensor *t, int64_t row, int64_t column) {
    return *(float *)((char *)t->data + row * t->nb[1] + column * sizeof(float));
}

struct job {
    operation *run;
    struct tensor *dst;
    void *params;
    int ith;
};
#define THREADS 3

static void *work(void *argument) {
    struct job *job = argument;
    job->run(job->dst, job->ith, THREADS, job->params);
    return NULL;
}

/* The operation by 3 threads at once, as ggml runs it; sources end with NULL. */
static void run(operation *f, struct tensor *dst, void *params, struct tensor **sources) {
    for (int i = 0; sources[i]; i++) dst->src[i] = sources[i];
    struct job jobs[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        jobs[i] = (struct job){f, dst, params, i};
        if (pthread_create(&threads[i], NULL, work, &jobs[i])) abort();
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}
#define RUN(f, dst, params, ...) run(f, dst, params, (struct tensor *[]){__VA_ARGS__, NULL})

static double difference, size_of_expected;
static void compare(double got, double expected) {
    difference += (got - expected) * (got - expected);
    size_of_expected += expected * expected;
}

/* What has been compared since the last report. Returns whether its relative error is too large. */
static int report(const char *what, double allowed) {
    const double error = sqrt(difference / size_of_expected);
    const int failed = !(error <= allowed);
    printf("%s: error %.1e%s\n", what, error, failed ? "  FAILED" : "");
    difference = size_of_expected = 0;
    return failed;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double elu(double x) { return x > 0 ? x : expm1(x); }

enum { FLOATS, INT16, WINOGRAD, WINOGRAD_INT16, SINGLE, INT8, WAYS };

/* "Same" padding. */
static int check_conv(int in, int out, int kernel, int dilation, int rows, int activation, int way) {
    const int winograd = way == WINOGRAD || way == WINOGRAD_INT16, single = way == SINGLE;
    const int bytes = way == INT8 ? 1 : way == INT16 || way == WINOGRAD_INT16 ? 2 : 4, integers = bytes < 4;
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
    const int padded = (in + VP_LANES - 1) / VP_LANES * VP_LANES;
    if (single)
        for (int tap = 0; tap < taps; tap++)
            for (int c = 0; c < padded; c++) ((float *)packed.data)[tap * padded + c] = c < in ? weight[c * taps + tap] : 0;
    else if (integers)
        vp_pack_integers(packed.data, scale.data, weight, shape, strides, VP_PANEL, block, bytes);
    else
        vp_pack(packed.data, weight, shape, strides, VP_PANEL, block, together);
    struct vp_conv1d params = {
        .taps = kernel, .dilation = dilation, .stride = 1, .vectors = VP_VECS, .block = block, .together = together,
        .weight_bytes = bytes, .activation = activation, .zeros = (kernel / 2) * dilation, .rate = 1, .weight = 0,
        .scale = integers ? 1 : -1, .bias = 2, .chunk = 3, .history = -1, .alpha = 4, .inverse = 5,
        .skip_chunk = -1, .skip_history = -1, .position = 6,
    };
    RUN(single ? vp_conv1d_single : winograd ? vp_conv1d_winograd : vp_conv1d, &y, &params,
        &packed, &scale, &bias, &chunk, &alpha, &inverse, &position);
    for (int t = 0; t < rows; t++)
        for (int o = 0; o < out; o++) {
            double sum = at(&bias, 0, o);
            for (int j = 0; j < kernel; j++) {
                const int r = t + (j - kernel / 2) * dilation;
                for (int c = 0; r >= 0 && r < rows && c < in; c++) {
                    const double v = at(&chunk, r, c), s = sin(a[c] * v);
                    const double input = activation == VP_SNAKE ? v + s * s * inv[c] : activation == VP_ELU ? elu(v) : v;
                    sum += at(&w, o, (int64_t)c * kernel + j) * input;
                }
            }
            compare(at(&y, t, o), sum);
        }
    static const char *const names[WAYS] = {"floats", "int16", "F(2,7)", "F(2,7) of int16", "single", "int8 weights"};
    static const double allowed[WAYS] = {1e-6, 5e-4, 3e-6, 2e-3, 1e-6, 2e-2};
    char name[120];
    snprintf(name, sizeof name, "%d -> %d, kernel %d, dilation %d, %d rows, activation %d, %s", in, out, kernel, dilation,
             rows, activation, names[way]);
    return report(name, allowed[way]);
}

static int check_norms(int channels, int rows, int taps, int groups) {
    struct tensor x = make(channels, rows), y = make(channels, rows), weight = make(channels, 1), bias = make(channels, 1);
    struct tensor kernel = make(channels, taps + 1), kernel_bias = make(channels, 1);
    struct vp_norm params = {.epsilon = 1e-6f, .taps = taps, .groups = groups};
    for (int i = 0; i < channels * rows; i++) ((float *)x.data)[i] = 3 * ((float *)x.data)[i] + 1;
    RUN(vp_layer_norm, &y, &params, &x, &weight, &bias, &kernel, &kernel_bias);
    double *row = malloc(sizeof(double) * (size_t)channels);
    for (int t = 0; t < rows; t++) {
        double mean = 0, square = 0;
        for (int c = 0; c < channels; c++) {
            row[c] = taps ? at(&kernel_bias, 0, c) : at(&x, t, c);
            for (int j = 0; j < taps; j++) {
                const int r = t + j - taps / 2;
                if (r >= 0 && r < rows) row[c] += at(&kernel, j, c) * at(&x, r, c);
            }
            mean += row[c] / channels;
        }
        for (int c = 0; c < channels; c++) square += (row[c] - mean) * (row[c] - mean) / channels;
        for (int c = 0; c < channels; c++)
            compare(at(&y, t, c), (row[c] - mean) / sqrt(square + 1e-6) * at(&weight, 0, c) + at(&bias, 0, c));
    }
    int failed = report("layer norm", 1e-6);
    for (int swish = 0; swish < 2; swish++) {
        params.mode = swish;
        RUN(vp_group_norm, &y, &params, &x, &weight, &bias);
        for (int g = 0, width = channels / groups; g < channels; g += width) {
            double mean = 0, square = 0;
            for (int i = 0; i < rows * width; i++) mean += at(&x, i / width, g + i % width) / (rows * width);
            for (int i = 0; i < rows * width; i++) square += pow(at(&x, i / width, g + i % width) - mean, 2) / (rows * width);
            for (int i = 0; i < rows * width; i++) {
                const int t = i / width, c = g + i % width;
                const double v = (at(&x, t, c) - mean) / sqrt(square + 1e-6) * at(&weight, 0, c) + at(&bias, 0, c);
                compare(at(&y, t, c), swish ? v * sigmoid(v) : v);
            }
        }
        failed += report(swish ? "group norm, swish" : "group norm", 2e-6);
    }
    return failed;
}

static int check_activations(int channels, int rows, int left, int right) {
    struct tensor x = make(2 * channels, rows), y = make(2 * channels, rows), padded = make(2 * channels, left + rows + right);
    int failed = 0;
    for (int i = 0; i < 2 * channels * rows; i++) ((float *)x.data)[i] *= 6;
    for (int mode = 0; mode < 2; mode++) {
        struct vp_norm params = {.mode = mode, .left = left, .right = right};
        RUN(vp_gelu, &y, &params, &x);
        RUN(vp_pad, &padded, &params, &x);
        for (int t = 0; t < rows; t++)
            for (int c = 0; c < 2 * channels; c++) {
                const double v = at(&x, t, c), u = v + 0.044715 * v * v * v;
                compare(at(&y, t, c), 0.5 * v * (1 + (mode ? tanh(sqrt(2 / acos(-1)) * u) : erf(v / sqrt(2)))));
            }
        failed += report(mode ? "GELU by tanh" : "GELU by erf", 3e-7);
        const int reach = left > right ? left : right, last = (rows > reach ? rows : reach + 1) - 1; /* a short clip goes on with zeros */
        for (int t = -left; t < rows + right; t++)
            for (int c = 0; c < 2 * channels; c++) {
                const int r = abs(t) > last ? 2 * last - abs(t) : abs(t);
                const double v = r < rows ? at(&x, r, c) : 0;
                compare(at(&padded, t + left, c), mode ? elu(v) : v);
            }
        failed += report(mode ? "reflection of ELU" : "reflection", mode ? 1e-6 : 0);
    }
    RUN(vp_polar, &y, NULL, &x);
    for (int t = 0; t < rows; t++)
        for (int c = 0; c < channels; c++) {
            const double size = fmin(exp(at(&x, t, c)), 100), phase = at(&x, t, channels + c);
            compare(at(&y, t, c), size * cos(phase));
            compare(at(&y, t, channels + c), size * sin(phase));
        }
    return failed + report("polar", 1e-6);
}

static int check_lstm(int units, int steps) {
    struct tensor x = make(4 * units, steps), weight = make(units, 4 * units), before = make(units, 2);
    struct tensor y = make(units, steps + 1), packed = make((units + VP_LANES) * units, 4);
    struct vp_lstm params = {0};
    vp_pack_lstm(packed.data, weight.data, units);
    double *h = malloc(sizeof(double) * (size_t)units * 3), *c = h + units, *next = c + units;
    for (int time = 0; time < 2; time++) { /* twice, as threads count each other */
        RUN(vp_lstm, &y, &params, &x, &packed, &before);
        for (int u = 0; u < units; u++) h[u] = at(&before, 0, u), c[u] = at(&before, 1, u);
        for (int t = 0; t < steps; t++) {
            for (int u = 0; u < units; u++) {
                double gate[4];
                for (int g = 0; g < 4; g++) {
                    gate[g] = at(&x, t, g * units + u);
                    for (int k = 0; k < units; k++) gate[g] += at(&weight, g * units + u, k) * h[k];
                }
                c[u] = sigmoid(gate[1]) * c[u] + sigmoid(gate[0]) * tanh(gate[2]);
                next[u] = sigmoid(gate[3]) * tanh(c[u]);
                compare(at(&y, t, u), next[u]);
            }
            memcpy(h, next, sizeof(double) * (size_t)units);
        }
        for (int u = 0; u < units; u++) compare(at(&y, steps, u), c[u]);
    }
    compare(params.arrived, 0), compare(params.left, 0);
    return report("LSTM", 1e-6);
}

/* Compare one head's results with softmax(scores) times values, its keys from `oldest` to `newest`; `share` holds the scores. */
static void compare_head(const struct tensor *y, const struct tensor *v, int t, int channel, int size, double *share,
                         int oldest, int newest) {
    double all = 0;
    for (int j = oldest; j <= newest; j++) all += share[j] = exp(share[j]);
    for (int i = channel; i < channel + size; i++) {
        double sum = 0;
        for (int j = oldest; j <= newest; j++) sum += share[j] / all * at(v, j, i);
        compare(at(y, t, i), sum);
    }
}

static int check_full_attention(int heads, int size, int rows) {
    const int channels = heads * size, width = (size + VP_PANEL - 1) / VP_PANEL * VP_PANEL;
    struct tensor qkv = make(3 * channels, rows), y = make(channels, rows);
    struct tensor q = columns(&qkv, 0, channels), k = columns(&qkv, channels, channels), v = columns(&qkv, 2 * channels, channels);
    struct tensor keys = make(channels, rows + VP_PANEL), values = make(heads * width, rows);
    struct vp_attention params = {.scale = 1 / sqrtf((float)size), .keys = 1, .heads = heads};
    RUN(vp_pack_attention, &keys, &params, &k);
    params.keys = 0;
    RUN(vp_pack_attention, &values, &params, &v);
    RUN(vp_attention, &y, &params, &q, &keys, &values);
    double *share = malloc(sizeof(double) * (size_t)rows);
    for (int t = 0; t < rows; t++)
        for (int h = 0; h < channels; h += size) {
            for (int j = 0; j < rows; j++) {
                share[j] = 0;
                for (int i = h; i < h + size; i++) share[j] += at(&q, t, i) * at(&k, j, i) / sqrt(size);
            }
            compare_head(&y, &v, t, h, size, share, 0, rows - 1);
        }
    return report("attention over a clip", 2e-6);
}

/* Positions are pushed in chunks of 1, 2, … , `chunk`, 1, … */
static int check_sliding_attention(int heads, int size, int window, int chunk, int length) {
    const int channels = heads * size, half = size / 2, capacity = (window - 1 + chunk + 15) / 16 * 16;
    struct vp_sliding_attention params = {.heads = heads, .window = window, .capacity = capacity, .offset = 48};
    struct tensor qkv = make(3 * channels, length), turns = make(size, length), y = make(channels, length);
    struct tensor all[3];
    for (int i = 0; i < 3; i++) all[i] = columns(&qkv, i * channels, channels);
    float *ring = calloc((size_t)params.capacity * 2 * channels + 48, sizeof(float)), *turn = turns.data;
    for (int t = 0; t < length; t++)
        for (int i = 0; i < half; i++) {
            const double angle = t * pow(100.0, -(double)i / half);
            turn[t * size + i] = (float)cos(angle), turn[t * size + half + i] = (float)sin(angle);
        }
    for (int first = 0, n = 1; first < length; first += n, n = n % chunk + 1) {
        n = n < length - first ? n : length - first;
        struct vp_stream stream = {.slot = first % capacity, .past = first < window - 1 ? first : window - 1};
        stream.low = (uint32_t)(uintptr_t)ring, stream.high = (uint32_t)((uint64_t)(uintptr_t)ring >> 32);
        struct tensor control = {.data = &stream, .ne = {4, 1, 1, 1}}, part[5] = {all[0], all[1], all[2], turns, y};
        for (int i = 0; i < 5; i++) part[i].data = (char *)part[i].data + first * part[i].nb[1], part[i].ne[1] = n;
        RUN(vp_sliding_attention, &part[4], &params, &part[0], &part[1], &part[2], &part[3], &control);
    }
    double *share = malloc(sizeof(double) * (size_t)length);
    for (int t = 0; t < length; t++)
        for (int h = 0; h < channels; h += size) {
            const int oldest = t < window ? 0 : t - window + 1;
            for (int j = oldest; j <= t; j++) {
                share[j] = 0;
                for (int i = 0; i < half; i++) { /* the product of two rotated pairs turns by the difference of their angles */
                    const double q0 = at(&all[0], t, h + i), q1 = at(&all[0], t, h + half + i);
                    const double k0 = at(&all[1], j, h + i), k1 = at(&all[1], j, h + half + i);
                    const double angle = (t - j) * pow(100.0, -(double)i / half);
                    share[j] += ((q0 * k0 + q1 * k1) * cos(angle) + (q1 * k0 - q0 * k1) * -sin(angle)) / sqrt(size);
                }
            }
            compare_head(&y, &all[2], t, h, size, share, oldest, t);
        }
    for (int i = 0; i < 48; i++) compare(ring[i], 0); /* before the layer's part */
    return report("attention over a sliding window", 2e-6);
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

int main(void) {
    const struct vp_layout layout = {offsetof(struct tensor, data), offsetof(struct tensor, ne), offsetof(struct tensor, nb), offsetof(struct tensor, src)};
    vp_set_layout(&layout);
    int failed = 0;
    static const int convs[][5] = {{1, 1, 1, 1, 1}, {3, 5, 4, 2, 9}, {16, 17, 7, 1, 33}, {40, 48, 7, 3, 50}, {96, 96, 7, 9, 100}, {200, 64, 7, 1, 30}, {64, 40, 1, 1, 64}};
    for (size_t i = 0; i < COUNT(convs); i++)
        for (int way = 0; way < WAYS; way++)
            for (int activation = VP_NONE; activation <= VP_ELU; activation++) {
                const int *c = convs[i], out = way == SINGLE ? 1 : c[1];
                if ((way == WINOGRAD || way == WINOGRAD_INT16) && c[2] != 7) continue;
                failed += check_conv(c[0], out, c[2], c[3], c[4], activation, way);
            }
    failed += check_norms(1, 1, 0, 1) + check_norms(33, 5, 7, 3) + check_norms(64, 300, 0, 32) + check_norms(40, 3, 7, 2);
    failed += check_activations(5, 9, 3, 3) + check_activations(16, 1, 3, 2) + check_activations(33, 4, 0, 5);
    failed += check_lstm(1, 1) + check_lstm(5, 30) + check_lstm(32, 9) + check_lstm(33, 7);
    failed += check_full_attention(1, 8, 1) + check_full_attention(1, 40, 31) + check_full_attention(3, 17, 100) + check_full_attention(2, 400, 390);
    failed += check_sliding_attention(1, 2, 1, 1, 5) + check_sliding_attention(3, 10, 7, 4, 40);
    failed += check_sliding_attention(2, 64, 50, 5, 130) + check_sliding_attention(5, 34, 20, 16, 90);
    if (failed) printf("%d FAILED\n", failed);
    return failed != 0;
}
