#include "dd2/small_teacher.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(small_teacher, SmallTeacherParams)

}  // namespace dd2
