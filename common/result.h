// SPDX-License-Identifier: Apache-2.0
// Result<T>: a value or an Error. Status: success or an Error. Both must be looked at.
#pragma once

#include <cerrno>
#include <cstdlib>
#include <string>
#include <utility>
#include <variant>

namespace distfuse {

/// Why something failed: an errno value for programs, a sentence for people.
struct [[nodiscard]] Error {
  int code = EIO;
  std::string message;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by intent
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  /// The value; calling it on an error is a bug of the caller and aborts.
  T& value() & { return *checked(); }
  const T& value() const& { return *const_cast<Result*>(this)->checked(); }
  T&& value() && { return std::move(*checked()); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  /// The error; calling it on a value aborts.
  [[nodiscard]] const Error& error() const {
    if (ok()) std::abort();
    return *std::get_if<1>(&state_);
  }

 private:
  T* checked() {
    if (!ok()) std::abort();
    return std::get_if<0>(&state_);
  }
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : failed_(true), error_(std::move(error)) {}  // NOLINT: implicit by intent

  [[nodiscard]] bool ok() const { return !failed_; }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] const Error& error() const {
    if (ok()) std::abort();
    return error_;
  }

 private:
  bool failed_ = false;
  Error error_{0, {}};
};

using Status = Result<void>;

}  // namespace distfuse

/// Returns the error of `expression` from the enclosing function, if there is one.
#define DISTFUSE_TRY(expression)                                    \
  do {                                                              \
    if (auto distfuse_status = (expression); !distfuse_status.ok()) \
      return distfuse_status.error();                               \
  } while (false)
