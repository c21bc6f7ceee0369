/* Weights into the order in which tiles read them: [panel][group of taps][block][tap][channel][output]. */
#include "kernels.h"

/* weight: [phases, out, in, taps] with strides in floats; output o of phase p becomes p * out + o.
 * `together` taps make a group. Outputs beyond the last fill their panel with zeros. */
VP_API void vp_pack(float *target, const float *weight, const int64_t shape[4], const int64_t strides[4],
                    int32_t panel, int32_t block, int32_t together) {
    const int64_t outputs = shape[0] * shape[1], channels = shape[2], taps = shape[3];
    for (int64_t first = 0; first < outputs; first += panel) {
        const int width = outputs - first < panel ? (int)(outputs - first) : panel;
        const float *row[VP_PANEL];
        for (int i = 0; i < width; i++)
            row[i] = weight + (first + i) / shape[1] * strides[0] + (first + i) % shape[1] * strides[1];
        for (int64_t group = 0; group < taps; group += together)
            for (int64_t c0 = 0; c0 < channels; c0 += block)
                for (int64_t tap = group; tap < group + together; tap++)
                    for (int64_t c = c0; c < channels && c < c0 + block; c++)
                        for (int i = 0; i < panel; i++)
                            *target++ = i < width ? row[i][c * strides[2] + tap * strides[3]] : 0.0f;
    }
}
