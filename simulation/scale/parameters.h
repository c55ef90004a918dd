// SPDX-License-Identifier: Apache-2.0
// What the fabric and the processors cost. Each figure's source: docs/scale.md.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace distfuse::scale {

/// Simulated time, in picoseconds: a NIC's operations take fractions of a nanosecond.
using Time = std::uint64_t;
inline constexpr Time kNanosecond = 1000;

[[nodiscard]] constexpr Time from_ns(double ns) {
  return static_cast<Time>(ns * static_cast<double>(kNanosecond) + 0.5);
}
[[nodiscard]] constexpr double to_ns(Time time) {
  return static_cast<double>(time) / static_cast<double>(kNanosecond);
}

/// Nanoseconds, unless the name says otherwise.
struct Parameters {
  // The way from one NIC's queue to the other's, and what a responder adds.
  double wire_ns = 800;       // post to responder, responder to completion: each
  double loop_wire_ns = 300;  // the same over lockd's loopback connection
  double host_read_ns = 300;  // a READ's fetch of memory over PCIe; latency, not occupancy

  // The responder NIC at lockd: how long each operation occupies it.
  double nic_read_ns = 12;           // READ
  double nic_write_ns = 8;           // WRITE, SEND, and the packet of an atomic
  double atomic_ns = 21;             // atomics of different words
  double same_word_atomic_ns = 480;  // atomics of one word
  double link_ns_per_byte = 0.04;    // 200 Gbit/s

  // Connections at lockd's NIC.
  double connections_per_client = 2;  // control and one lane
  double cached_connections = 450;    // contexts that the NIC keeps; beyond: misses
  double miss_ns = 300;               // latency of a context's fetch

  // The client.
  double client_post_ns = 100;       // its processor, a chain or message
  double client_nic_ns = 10;         // its NIC
  double client_wake_ns = 3000;      // a message arrives: the thread that sleeps for it runs
  double client_message_ns = 200;    // and handles it
  double shed_shared_ns = 3000;      // invalidate what S covered
  double shed_exclusive_ns = 20000;  // bring to storaged what X covered

  // lockd's service thread.
  double lockd_wake_ns = 3000;    // when it was idle
  double lockd_receive_ns = 100;  // poll one completion, repost its buffer
  double lockd_send_ns = 100;     // post one SEND or chain
  double lockd_core_ns = 60;      // the core: a message or a completed chain
  double lockd_waiter_ns = 0;     // and for each waiter in the slot's queue: no walk is left
  double lockd_session_ns = 0;    // a stage of revokes, for each live session: likewise

  // Policy at the clients. 0: a Revoke is served at once. Else locks that bounce are held for a while (rdma/lock/hold.h), its
  // times divided by this.
  double hold_divisor = 0;
};

struct ParameterField {
  std::string_view name;
  double Parameters::*member;
};

[[nodiscard]] std::span<const ParameterField> parameter_fields();

/// "name=value". False: no such name, or not a number of at least 0.
[[nodiscard]] bool set_parameter(Parameters& parameters, std::string_view assignment);

/// What `connections` at a NIC add to the occupancy of a READ or an atomic, and of a WRITE or a SEND (ns).
[[nodiscard]] double read_penalty_ns(double connections);
[[nodiscard]] double write_penalty_ns(double connections);

}  // namespace distfuse::scale
