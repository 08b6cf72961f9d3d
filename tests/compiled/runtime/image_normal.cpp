#include "launchers.h"

#include "cuda/image_normal.cu"

DD2_EXPORT(image_normal, ImageNormalParams)
