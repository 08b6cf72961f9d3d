// From the numbers of a plan to the instantiation of a kernel that they name.
#pragma once

#include <cstring>

#include "check.h"

namespace dd2::cuda {

// The values that a parameter of a kernel's template takes.
template <auto... kValues>
struct Values {};

using LogitTypes = Values<LogitType::kFloat32, LogitType::kBFloat16, LogitType::kFloat16>;
using AnyType = Values<LogitType::kAny>;
using Flags = Values<false, true>;
using Off = Values<false>;

// What run() takes of a kernel: its name, and its instantiation for `values`.
#define DD2_KERNEL(name) #name, [](auto... values) { return name<decltype(values)::value...>; }

namespace run_detail {

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

template <auto... kValues, typename Use>
bool with_value(Values<kValues...>, int wanted, Use use) {
  return ((static_cast<int>(kValues) == wanted && use(Constant<kValues>())) || ...);
}

template <typename Use>
bool with_values(const Argument*, Use use) {
  return use();
}

template <typename First, typename... Rest, typename Use>
bool with_values(const Argument* arguments, Use use) {
  return with_value(First(), arguments->value, [&](auto first) {
    return with_values<Rest...>(arguments + 1, [&](auto... rest) { return use(first, rest...); });
  });
}

}  // namespace run_detail

// Launches the kernel if it is the plan's: false if it has another name, or its template takes
// another value than `Parameters` say.
template <typename... Parameters, typename Instantiate, typename Params>
bool run(const char* name, Instantiate instantiate, const Launch& launch, const Params& params,
         void* stream) {
  if (std::strcmp(name, launch.kernel) != 0) return false;
  return run_detail::with_values<Parameters...>(launch.arguments, [&](auto... values) {
    launch_kernel(instantiate(values...), launch, params, stream);
    return true;
  });
}

// Launches a plan by `run_one(launch)`, which is false for a kernel that it does not know.
template <typename RunOne>
void run_all(const Plan& plan, RunOne run_one) {
  for (const Launch& launch : plan.launches) {
    if (!run_one(launch)) throw std::logic_error("no kernel " + name_of(launch));
  }
}

}  // namespace dd2::cuda
