/* exp, sine, cosine and what is made of them, GELU by erf too, a vector at a time.
 *
 * Polynomials are Chebyshev fits on the reduced range. Largest errors, against float64: exp 1e-7 relative;
 * sine and cosine 1e-7 absolute for |x| <= PHASE_LIMIT, beyond it libm; GELU 2e-7 relative to
 * max(1, |x|) (measured in tests/test_norm_kernels.py).
 */
#ifndef VP_MATHVEC_H
#define VP_MATHVEC_H

#include <math.h>
#include <string.h>

#include "kernels.h"

#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */

VP_INLINE vfloat choose(vint mask, vfloat yes, vfloat no) { return (vfloat)((mask & (vint)yes) | (~mask & (vint)no)); }
VP_INLINE vfloat least(vfloat a, vfloat b) { return choose(a < b, a, b); }
VP_INLINE vfloat most(vfloat a, vfloat b) { return choose(a > b, a, b); }
VP_INLINE vfloat magnitude(vfloat x) { return (vfloat)((vint)x & 0x7fffffff); }

VP_INLINE float sum_lanes(vfloat v) {
    float s = 0;
    for (int i = 0; i < VP_LANES; i++) s += v[i];
    return s;
}

VP_INLINE float greatest_lane(vfloat v) {
    float high = v[0];
    for (int i = 1; i < VP_LANES; i++) high = v[i] > high ? v[i] : high;
    return high;
}

VP_INLINE vfloat load_some(const float *p, int n) { /* the first n lanes, zeros after */
    if (n >= VP_LANES) return *(const vfloat *)p;
    float part[VP_LANES] = {0};
    memcpy(part, p, n * sizeof(float));
    return *(vfloat *)part;
}

VP_INLINE void store_some(float *p, vfloat v, int n) {
    if (n >= VP_LANES)
        *(vfloat *)p = v;
    else
        memcpy(p, &v, n * sizeof(float));
}

VP_INLINE vfloat fused(vfloat x, float a, float b) { return multiply_add(x, splat(a), splat(b)); }
VP_INLINE vfloat step(vfloat p, vfloat x, float c) { return multiply_add(p, x, splat(c)); }

VP_INLINE vfloat exp_lanes(vfloat x) { /* 0 below -87.3; at most e^88 */
    vint tiny = x < -87.3f;
    x = least(choose(tiny, splat(-87.3f), x), splat(88.0f)); /* so that the exponent below cannot overflow */
    vfloat n = fused(x, 1.44269504f, MAGIC) - MAGIC;
    vfloat r = multiply_add(n, splat(-0.693359375f), x); /* ln 2 in two parts (Cody and Waite) */
    r = multiply_add(n, splat(2.12194440e-4f), r);
    vfloat p = fused(r, 1.3926251e-3f, 8.3632329e-3f);
    p = step(p, r, 4.16665542e-2f);
    p = step(p, r, 1.66665766e-1f);
    p = step(p, r, 0.5f);
    p = multiply_add(p * r, r, r) + 1.0f;
    vint power = __builtin_convertvector(n, vint) << 23;
    return choose(tiny, splat(0.0f), (vfloat)((vint)p + power));
}

VP_INLINE vfloat sigmoid_lanes(vfloat x) { return 1.0f / (1.0f + exp_lanes(-x)); }

VP_INLINE vfloat tanh_lanes(vfloat x) {
    vfloat t = exp_lanes(magnitude(x) * -2.0f);
    vfloat y = (1.0f - t) / (1.0f + t);
    return choose(x < 0.0f, -y, y);
}

VP_INLINE vfloat elu_lanes(vfloat x) { return choose(x > 0.0f, x, exp_lanes(least(x, splat(0.0f))) - 1.0f); }

/* x Phi(x) with 2 Phi(-|x|) = erfc(z) = exp(-z^2) t P(t), z = |x| / sqrt 2 and t = 1 / (1 + 0.35 z): one path for all x. */
VP_INLINE vfloat gelu_lanes(vfloat x) {
    vfloat half = x * x * -0.5f;
    vfloat t = 1.0f / fused(magnitude(x), 0.247487373f, 1.0f);
    vfloat p = fused(t, -0.185050170f, 0.719207433f);
    p = step(p, t, -0.592198498f);
    p = step(p, t, 0.608785136f);
    p = step(p, t, 0.0264913037f);
    p = step(p, t, 0.227689374f);
    p = step(p, t, 0.195075632f);
    vfloat small = p * t * exp_lanes(half) * (x * 0.5f); /* x Phi(-|x|) */
    return choose(x < 0.0f, small, x - small);
}

VP_INLINE vfloat gelu_tanh_lanes(vfloat x) {
    return 0.5f * x * (1.0f + tanh_lanes(0.797884561f * x * (1.0f + 0.044715f * x * x)));
}

#define PHASE_LIMIT 10000.0f

VP_INLINE void sincos_lanes(vfloat x, vfloat *sine, vfloat *cosine) {
    vfloat n = fused(x, 0.636619772f, MAGIC) - MAGIC;
    vfloat r = multiply_add(n, splat(-1.5703125f), x); /* pi / 2 in three parts, the first two short */
    r = multiply_add(n, splat(-4.837512969970703e-4f), r);
    r = multiply_add(n, splat(-7.549789948768648e-8f), r);
    vfloat s = r * r;
    vfloat p = step(fused(s, -1.95828307e-4f, 8.33272461e-3f), s, -1.66666645e-1f);
    vfloat q = step(fused(s, 2.45428711e-5f, -1.38882793e-3f), s, 4.16666645e-2f);
    vfloat sn = multiply_add(p * s, r, r);
    vfloat cs = multiply_add(q * s, s, fused(s, -0.5f, 1.0f));
    vint quadrant = __builtin_convertvector(n, vint);
    vint swap = (quadrant & 1) != 0;
    vfloat a = choose(swap, cs, sn), b = choose(swap, sn, cs);
    *sine = choose((quadrant & 2) != 0, -a, a);
    *cosine = choose(((quadrant + 1) & 2) != 0, -b, b);
    for (int i = 0; i < VP_LANES; i++)
        if (__builtin_expect(!(fabsf(x[i]) <= PHASE_LIMIT), 0)) {
            (*sine)[i] = sinf(x[i]);
            (*cosine)[i] = cosf(x[i]);
        }
}

#endif
