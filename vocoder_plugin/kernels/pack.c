/* Weights into the order in which conv1d.c reads them: [panel][block][tap][channel][VP_PANEL]. */
#include "kernels.h"

/* weight: [phases, out, in, taps] with strides in floats; output o of phase p becomes p * out + o.
 * Outputs beyond the last fill their panel with zeros. */
VP_API void vp_pack(float *target, const float *weight, const int64_t shape[4], const int64_t strides[4], int32_t block) {
    const int64_t outputs = shape[0] * shape[1], channels = shape[2], taps = shape[3];
    for (int64_t first = 0; first < outputs; first += VP_PANEL) {
        const int width = outputs - first < VP_PANEL ? (int)(outputs - first) : VP_PANEL;
        const float *row[VP_PANEL];
        for (int i = 0; i < width; i++)
            row[i] = weight + (first + i) / shape[1] * strides[0] + (first + i) % shape[1] * strides[1];
        for (int64_t c0 = 0; c0 < channels; c0 += block)
            for (int64_t tap = 0; tap < taps; tap++)
                for (int64_t c = c0; c < channels && c < c0 + block; c++)
                    for (int i = 0; i < VP_PANEL; i++)
                        *target++ = i < width ? row[i][c * strides[2] + tap * strides[3]] : 0.0f;
    }
}
