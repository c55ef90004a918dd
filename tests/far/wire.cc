// SPDX-License-Identifier: Apache-2.0
#include "tests/far/wire.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

namespace distfuse::tests::far {
namespace {

constexpr std::size_t kMaxRest =
    4096 + 3 * 4096;  // Of a message, besides its data: paths and numbers.

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void put_text(std::string& out, std::string_view text) {
  put(out, static_cast<std::uint32_t>(text.size()));
  out.append(text);
}

/// Takes values off the front; `good` turns false at the first that is not there.
struct Reader {
  std::string_view rest;
  bool good = true;

  template <typename T>
  T take() {
    T value{};
    good = good && rest.size() >= sizeof(value);
    if (!good) return value;
    std::memcpy(&value, rest.data(), sizeof(value));
    rest.remove_prefix(sizeof(value));
    return value;
  }
  std::string take_text() {
    const auto length = take<std::uint32_t>();
    good = good && rest.size() >= length;
    if (!good) return {};
    std::string text(rest.substr(0, length));
    rest.remove_prefix(length);
    return text;
  }
};

/// `put_some` as write(2).
template <typename PutSome>
bool write_all(const std::string& bytes, PutSome&& put_some) {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = put_some(bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

bool read_all(int fd, char* to, std::size_t length) {
  for (std::size_t done = 0; done < length;) {
    const ssize_t n = ::read(fd, to + done, length - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

std::string message_of(const std::string& rest) {
  std::string message;
  message.reserve(sizeof(std::uint32_t) + rest.size());
  put_text(message, rest);
  return message;
}

std::optional<std::string> receive_message(int fd, std::size_t most) {
  std::uint32_t length = 0;
  if (!read_all(fd, reinterpret_cast<char*>(&length), sizeof(length)) || length > most) return {};
  std::string rest(length, '\0');
  if (!read_all(fd, rest.data(), length)) return {};
  return rest;
}

}  // namespace

bool send_call(int fd, const Call& call) {
  std::string rest;
  put(rest, call.kind);
  for (const auto number : call.numbers) put(rest, number);
  for (const auto* text : {&call.first, &call.second, &call.data}) put_text(rest, *text);
  // A hand that is lost is an error of the call, and no signal.
  return write_all(message_of(rest), [&](const char* from, std::size_t length) {
    return ::send(fd, from, length, MSG_NOSIGNAL);
  });
}

bool send_answer(int fd, const Answer& answer) {
  std::string rest;
  put(rest, answer.result);
  put(rest, answer.error);
  put_text(rest, answer.data);
  return write_all(message_of(rest),
                   [&](const char* from, std::size_t length) { return ::write(fd, from, length); });
}

std::optional<Call> receive_call(int fd) {
  const auto message = receive_message(fd, kMaxCall + kMaxRest);
  if (!message) return {};
  Reader in{*message};
  Call call;
  call.kind = in.take<Kind>();
  for (auto& number : call.numbers) number = in.take<std::int64_t>();
  for (auto* text : {&call.first, &call.second, &call.data}) *text = in.take_text();
  if (!in.good || !in.rest.empty() || call.kind > Kind::unmap) return {};
  return call;
}

std::optional<Answer> receive_answer(int fd) {
  const auto message = receive_message(fd, kMaxData + kMaxRest);
  if (!message) return {};
  Reader in{*message};
  Answer answer;
  answer.result = in.take<std::int64_t>();
  answer.error = in.take<std::int32_t>();
  answer.data = in.take_text();
  if (!in.good || !in.rest.empty()) return {};
  return answer;
}

}  // namespace distfuse::tests::far
