#include "dd2/small_student.h"

#include "plan.h"

namespace dd2 {

DD2_LAYOUT(small_student, SmallStudentParams)

}  // namespace dd2
