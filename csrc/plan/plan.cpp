#include "plan.h"

namespace dd2 {
namespace {

std::string spelled(const Argument& argument) {
  const std::string number = std::to_string(argument.value);
  switch (argument.kind) {
    case Argument::Kind::kLogitType: return "LogitType(" + number + ")";
    case Argument::Kind::kBool: return argument.value ? "true" : "false";
    default: return number;
  }
}

}  // namespace

std::string name_of(const Launch& launch) {
  std::string list;
  for (const Argument& argument : launch.arguments) {
    if (argument.kind == Argument::Kind::kNone) break;
    list += (list.empty() ? "" : ", ") + spelled(argument);
  }
  return list.empty() ? launch.kernel : launch.kernel + ("<" + list + ">");
}

}  // namespace dd2
