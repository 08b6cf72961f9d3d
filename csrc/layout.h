// Where the fields of a plain struct lie, without a list of them: for Python, which fills the same
// structs through ctypes (dd2_fast/ops/structs.py), to compare at load.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

namespace dd2 {

struct Field {
  std::size_t offset, size;
};

namespace layout_detail {

struct Anything {
  template <typename T>
  operator T() const;
};

template <std::size_t>
using AnythingAt = Anything;

template <typename T, std::size_t... I>
auto takes(std::index_sequence<I...>) -> decltype(T{AnythingAt<I>{}...}, std::true_type{});
template <typename T>
std::false_type takes(...);

// The most values that initialise a T: its fields.
template <typename T, std::size_t n = 16>
constexpr std::size_t field_count() {
  if constexpr (decltype(takes<T>(std::make_index_sequence<n>{}))::value) {
    return n;
  } else {
    return field_count<T, n - 1>();
  }
}

template <typename T>
void append_fields(const T& value, const char* start, std::vector<Field>& fields) {
  if constexpr (!std::is_class_v<T>) {
    const auto* place = reinterpret_cast<const char*>(&value);
    fields.push_back({static_cast<std::size_t>(place - start), sizeof(T)});
  } else {
    const auto append = [&](const auto&... field) { (append_fields(field, start, fields), ...); };
    constexpr std::size_t count = field_count<T>();
    if constexpr (count == 5) {
      const auto& [a, b, c, d, e] = value;
      append(a, b, c, d, e);
    } else if constexpr (count == 6) {
      const auto& [a, b, c, d, e, f] = value;
      append(a, b, c, d, e, f);
    } else if constexpr (count == 7) {
      const auto& [a, b, c, d, e, f, g] = value;
      append(a, b, c, d, e, f, g);
    } else if constexpr (count == 8) {
      const auto& [a, b, c, d, e, f, g, h] = value;
      append(a, b, c, d, e, f, g, h);
    } else if constexpr (count == 10) {
      const auto& [a, b, c, d, e, f, g, h, i, j] = value;
      append(a, b, c, d, e, f, g, h, i, j);
    } else if constexpr (count == 11) {
      const auto& [a, b, c, d, e, f, g, h, i, j, k] = value;
      append(a, b, c, d, e, f, g, h, i, j, k);
    } else if constexpr (count == 12) {
      const auto& [a, b, c, d, e, f, g, h, i, j, k, l] = value;
      append(a, b, c, d, e, f, g, h, i, j, k, l);
    } else {
      static_assert(count == 5, "add a line for this number of fields");
    }
  }
}

}  // namespace layout_detail

// Every field of T in order, those of structs inside it one by one.
template <typename T>
std::vector<Field> layout_of() {
  const T value{};
  std::vector<Field> fields;
  layout_detail::append_fields(value, reinterpret_cast<const char*>(&value), fields);
  return fields;
}

}  // namespace dd2
