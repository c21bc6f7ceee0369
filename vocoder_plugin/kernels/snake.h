/* Snake: x + sin^2(alpha x) / alpha (Ziyin, Hartwig and Ueda 2020, arXiv:2006.08195), as DAC uses it.
 *
 * sin^2 has period pi, so the argument is reduced to r in [-pi/2, pi/2] by y = n pi + r and the sign of
 * sin r does not matter: no quadrant to select. pi comes in three parts (Cody and Waite). With fused
 * multiply-add y - n pi_1 is exact; without, the parts are short so that the products with n are.
 * Arguments beyond SINE_LIMIT, where that no longer holds, go to libm one by one.
 * sin r = r + r^3 P(r^2) with P minimax (relative error 6e-9). The result is within 2 ulp, without fused
 * multiply-add within 2 ulp + 2e-10 (measured in tests/test_kernels.py).
 */
#ifndef VP_SNAKE_H
#define VP_SNAKE_H

#include <math.h>

#include "kernels.h"

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define SINE_LIMIT 90000.0f
#define PI_1 3.14159274f
#define PI_2 -8.74227766e-8f
#define PI_3 -3.43e-15f
#else
#define SINE_LIMIT 8192.0f
#define PI_1 3.140625f
#define PI_2 9.67502593994140625e-4f
#define PI_3 1.509957990978376432e-7f
#endif

VP_INLINE vfloat sine_reduced(vfloat y) { /* for |y| <= SINE_LIMIT */
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vfloat n = multiply_add(y, splat(0.318309886f), splat(magic)) - magic;
    vfloat r = multiply_add(n, splat(-PI_1), y);
    r = multiply_add(n, splat(-PI_2), r);
    r = multiply_add(n, splat(-PI_3), r);
    vfloat s = r * r;
    vfloat p = multiply_add(s, splat(2.6057805e-6f), splat(-1.98096028e-4f));
    p = multiply_add(p, s, splat(8.33306625e-3f));
    p = multiply_add(p, s, splat(-1.66666596e-1f));
    return multiply_add(p * s, r, r);
}

VP_INLINE int any_beyond(vfloat y) {
    vint out = (y > SINE_LIMIT) | (y < -SINE_LIMIT);
    int32_t any = 0;
    for (int i = 0; i < VP_LANES; i++) any |= out[i];
    return any;
}

VP_INLINE vfloat sine_magnitude(vfloat y) { /* sin(y) up to sign */
    vfloat s = sine_reduced(y);
    if (__builtin_expect(any_beyond(y), 0))
        for (int i = 0; i < VP_LANES; i++)
            if (fabsf(y[i]) > SINE_LIMIT) s[i] = sinf(y[i]);
    return s;
}

VP_INLINE vfloat snake(vfloat x, vfloat alpha, vfloat inverse) {
    vfloat s = sine_magnitude(alpha * x);
    return multiply_add(inverse, s * s, x);
}

#endif
