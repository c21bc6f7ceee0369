/* Products of rows with packed weights, by the kind of the weights. */
#ifndef VP_PRODUCTS_H
#define VP_PRODUCTS_H

#include "tile.h"

/* Of `rows` rows (1 to tile_height(vectors)) with one block of weights of one panel. */
void tile_float(const struct tile_args *a, int rows);
void tile_int16(const struct tile_args *a, int rows);
void tile_int8(const struct tile_args *a, int rows);

VP_INLINE void tile_rows(const struct tile_args *a, int rows, int weight_bytes) {
    if (weight_bytes == 4)
        tile_float(a, rows);
    else if (weight_bytes == 2)
        tile_int16(a, rows);
    else
        tile_int8(a, rows);
}

#endif
