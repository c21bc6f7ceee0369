/* exp, sine, cosine, erf and what is made of them, a vector at a time.
 *
 * Polynomials are Chebyshev fits on the reduced range. Largest errors, against float64: exp 1e-7 relative;
 * sine and cosine 1e-7 absolute for |x| <= PHASE_LIMIT, beyond it libm; erf 1e-7 absolute
 * (measured in tests/test_clip_kernels.py).
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

VP_INLINE vfloat expm1_tail(vfloat r) { /* (e^r - 1 - r) / r^2 for |r| <= 0.35 */
    vfloat p = fused(r, 1.3926251e-3f, 8.3632329e-3f);
    p = step(p, r, 4.16665542e-2f);
    p = step(p, r, 1.66665766e-1f);
    return step(p, r, 0.5f);
}

VP_INLINE vfloat exp_lanes(vfloat x) { /* 0 below -87.3; at most e^88 */
    vint tiny = x < -87.3f;
    x = least(x, splat(88.0f));
    vfloat n = fused(x, 1.44269504f, MAGIC) - MAGIC;
    vfloat r = multiply_add(n, splat(-0.693359375f), x); /* ln 2 in two parts (Cody and Waite) */
    r = multiply_add(n, splat(2.12194440e-4f), r);
    vfloat p = multiply_add(expm1_tail(r) * r, r, r) + 1.0f;
    vint power = __builtin_convertvector(n, vint) << 23;
    return choose(tiny, splat(0.0f), (vfloat)((vint)p + power));
}

VP_INLINE vfloat sigmoid_lanes(vfloat x) { return 1.0f / (1.0f + exp_lanes(-x)); }

VP_INLINE vfloat tanh_lanes(vfloat x) {
    vfloat t = exp_lanes(magnitude(x) * -2.0f);
    vfloat y = (1.0f - t) / (1.0f + t);
    return choose(x < 0.0f, -y, y);
}

VP_INLINE vfloat elu_lanes(vfloat x) {
    /* e^x - 1 for x < 0: near 0 from the series of exp_lanes' own polynomial, so that no digits cancel */
    vfloat r = most(x, splat(-0.35f));
    vfloat near = multiply_add(expm1_tail(r) * r, r, r);
    vfloat far = exp_lanes(least(x, splat(0.0f))) - 1.0f;
    return choose(x > 0.0f, x, choose(x > -0.34f, near, far));
}

VP_INLINE vfloat erf_lanes(vfloat z) {
    vfloat s = z * z;
    vfloat a = fused(s, 7.8758751e-5f, -8.0168643e-4f);
    a = step(a, s, 5.1890874e-3f);
    a = step(a, s, -2.68542120e-2f);
    a = step(a, s, 1.12835947e-1f);
    a = step(a, s, -3.76126267e-1f);
    a = step(a, s, 1.28379166e-1f);
    vfloat inner = multiply_add(a, z, z);
    vfloat m = least(magnitude(z), splat(4.0f)); /* erf(4) is 1 in float32 */
    vfloat b = fused(m, 1.6371515e-6f, -4.6058043e-5f);
    b = step(b, m, 5.9680563e-4f);
    b = step(b, m, -4.7595963e-3f);
    b = step(b, m, 2.64211364e-2f);
    b = step(b, m, -1.10080083e-1f);
    b = step(b, m, -6.31826051e-1f);
    b = step(b, m, -1.13023343f);
    b = step(b, m, 3.2013807e-4f); /* log erfc(m) */
    vfloat outer = 1.0f - exp_lanes(b);
    outer = choose(z < 0.0f, -outer, outer);
    return choose(magnitude(z) <= 1.0f, inner, outer);
}

VP_INLINE vfloat gelu_lanes(vfloat x) { return 0.5f * x * (1.0f + erf_lanes(x * 0.707106781f)); }

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
