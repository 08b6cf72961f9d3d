// The arguments of every operator in operators.def.
#pragma once

#include "dd2/conditional_score.h"
#include "dd2/flow_solve.h"
#include "dd2/image_normal.h"
#include "dd2/nearest_code.h"
#include "dd2/sample_code.h"
#include "dd2/small_network.h"
