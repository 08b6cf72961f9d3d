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

// The size of a struct, and every field in order, those of structs inside it one by one.
struct Layout {
  std::size_t size;
  std::vector<Field> fields;
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
template <typename T, std::size_t n = 24>
constexpr std::size_t field_count() {
  if constexpr (decltype(takes<T>(std::make_index_sequence<n>{}))::value) {
    return n;
  } else {
    return field_count<T, n - 1>();
  }
}

template <typename T>
void append_fields(std::size_t start, std::vector<Field>& fields);

// A value of the list that initialises a struct; what it is converted to is the type of the field.
struct NextField {
  std::size_t& end;  // of the field before
  std::vector<Field>& fields;

  template <typename T>
  operator T() const {
    const std::size_t start = (end + alignof(T) - 1) / alignof(T) * alignof(T);
    append_fields<T>(start, fields);
    end = start + sizeof(T);
    return T{};
  }
};

template <typename T, std::size_t... I>
void append_each(std::size_t start, std::vector<Field>& fields, std::index_sequence<I...>) {
  std::size_t end = start;
  static_cast<void>(T{(static_cast<void>(I), NextField{end, fields})...});  // from left to right
}

template <typename T>
void append_fields(std::size_t start, std::vector<Field>& fields) {
  if constexpr (std::is_class_v<T>) {
    append_each<T>(start, fields, std::make_index_sequence<field_count<T>()>{});
  } else {
    fields.push_back({start, sizeof(T)});
  }
}

}  // namespace layout_detail

template <typename T>
Layout layout_of() {
  static_assert(std::is_standard_layout_v<T> && std::is_aggregate_v<T>, "a plain struct");
  Layout layout{sizeof(T), {}};
  layout_detail::append_fields<T>(0, layout.fields);
  return layout;
}

}  // namespace dd2
