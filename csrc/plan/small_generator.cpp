#include "dd2/small_generator.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(small_generator, SmallGeneratorParams)

}  // namespace dd2
