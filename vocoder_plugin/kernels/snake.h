/* Snake: x + sin^2(alpha x) / alpha (Ziyin, Hartwig and Ueda 2020, arXiv:2006.08195), as DAC uses it.
 *
 * sin^2 has period pi, so the argument is reduced to r in [-pi/2, pi/2] by y = n pi + r and the sign of
 * sin r does not matter: no quadrant to select. Three-part pi (Cody and Waite) keeps r exact while
 * |n| < 2^15; arguments beyond SINE_LIMIT go to libm one by one.
 * sin r = r + r^3 P(r^2), P a minimax polynomial; |error| of sine_reduced over the range: below 2 ulp
 * (measured in tests/test_kernels.py).
 */
#ifndef VP_SNAKE_H
#define VP_SNAKE_H

#include <math.h>

#include "kernels.h"

#define SINE_LIMIT 90000.0f

VP_INLINE vfloat splat(float x) { return x - (vfloat){0}; }

VP_INLINE vfloat sine_reduced(vfloat y) { /* sin(y) up to sign */
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vfloat n = y * 0.318309886f + magic;
    n = n - magic;
    vfloat r = y - n * 3.140625f;
    r = r - n * 9.67502593994140625e-4f;
    r = r - n * 1.509957990978376432e-7f;
    vfloat s = r * r;
    vfloat p = s * 2.6057805e-6f - 1.98096028e-4f;
    p = p * s + 8.33306625e-3f;
    p = p * s - 1.66666596e-1f;
    return p * s * r + r;
}

VP_INLINE int any_beyond(vfloat y) {
    vint out = (y > SINE_LIMIT) | (y < -SINE_LIMIT);
    int32_t any = 0;
    for (int i = 0; i < VP_LANES; i++) any |= out[i];
    return any;
}

VP_INLINE vfloat snake(vfloat x, vfloat alpha, vfloat inverse) {
    vfloat y = alpha * x;
    vfloat s = sine_reduced(y);
    if (__builtin_expect(any_beyond(y), 0))
        for (int i = 0; i < VP_LANES; i++)
            if (fabsf(y[i]) > SINE_LIMIT) s[i] = sinf(y[i]);
    return x + inverse * (s * s);
}

#endif
