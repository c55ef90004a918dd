// SPDX-License-Identifier: Apache-2.0
// A software RDMA device behind VerbsTable, for tests: one device, one machine. It executes work requests with RC's semantics at their
// weakest (a WRITE without a fence overtakes the READs and atomics ahead of it in its list), counts send and receive
// queue slots and completion queue entries as hardware does, and delivers rdma_cm's events through real descriptors.
#pragma once

#include <cstdint>

#include "rdma/fabric/verbs_table.h"

namespace distfuse::fabric::verbs {

[[nodiscard]] const VerbsTable& fake_table();

/// Faults, and what the device saw.
struct FakeControl {
  static void reset();
  static void set_present(bool present);
  /// The `after`-th next send work request completes with this error.
  static void fail_send(int after, ibv_wc_status status);
  /// Every connection hears DISCONNECTED; or the device is removed.
  static void raise_on_all(rdma_cm_event_type event);
  /// Changes byte `at` of the private data of the accepts to come.
  static void corrupt_accept(std::size_t at);
  /// What the callers to come ask for; the port's own is 1024.
  static void set_path_mtu(ibv_mtu mtu);
  /// A send with this immediate data and length on every connected queue pair towards `listening side`, as a bad peer would.
  static void send_raw(std::uint32_t immediate, std::uint32_t length);

  static std::uint64_t receiver_not_ready();
  static std::uint64_t overflows();  ///< Of completion queues, and of send queues.
  static std::uint64_t doorbells();  ///< Calls of post_send.
  static std::uint64_t fences();     ///< Requests that wait for the READs and atomics ahead.
  static int live_objects();         ///< Ids, queue pairs, queues, regions, channels, domains.
};

}  // namespace distfuse::fabric::verbs
