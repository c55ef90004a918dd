// SPDX-License-Identifier: Apache-2.0
// The agent: process 1 of a guest. One thread, one poll loop.
//
// Links: the host's (virtio-serial, always there), other guests' (TCP on the private network: mpirun's launcher), programs of this
// guest (unix socket: requests to the host). A job belongs to its link and is killed (SIGHUP to its group) when that ends.
// A job has ended when its process has: what it had written by then is sent, and nobody waits for daemons that hold its pipes open.
// Process 1 also collects every orphan.
//
// Bounds: a link's unsent bytes stay under kMaxUnsent plus one read (64 KiB) of each of its jobs' pipes, for a job's pipes are not
// read while its link is above; kernel records are not read then either (the kernel's ring buffer holds them). Input that a
// job does not take is bounded by kMaxUnsent; a link that sends more is ended (the host's: the job's input is).
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "common/descriptor.h"
#include "common/result.h"
#include "vm/agent/frame.h"
#include "vm/agent/job.h"

namespace distfuse::vm {

struct AgentOptions {
  std::string host_port;     ///< The virtio-serial device.
  std::string local_socket;  ///< For programs of this guest.
  std::uint16_t tcp_port = 0;
  std::string
      tcp_address;  ///< Of this guest on the private network; empty: no other guest may connect.
};

class Agent {
 public:
  [[nodiscard]] Status open(const AgentOptions& options);
  [[noreturn]] void run();

 private:
  static constexpr std::size_t kMaxUnsent = 1 << 20;

  enum class Kind : std::uint8_t { host, guest, program };
  struct Link {
    Kind kind = Kind::host;
    Descriptor fd;
    std::string received;
    std::string unsent;
    bool broken = false;
    std::map<std::uint32_t, Job> jobs;
  };

  void step();
  void accept_link(int listener, Kind kind);
  void receive(Link& link);
  void handle(Link& link, const Frame& frame);
  void start(Link& link, const Frame& frame);
  void give_input(Link& link, Job& job, const std::string& data);
  void answer(const Frame& frame);
  void ask_host(Link& link, const Frame& frame);
  static void flush(Link& link);
  static void read_job(Link& link, std::uint32_t channel, Job& job);
  static bool read_pipe(Link& link, std::uint32_t channel, Descriptor& fd, FrameType type);
  void read_kernel();
  void collect_children();
  void finish_jobs(Link& link);
  void drop_broken_links();

  std::list<Link> links_;  // the first is the host's
  Descriptor guests_;
  Descriptor programs_;
  Descriptor kernel_;
  Descriptor child_signals_;
  std::uint32_t next_question_ = 1;
  std::map<std::uint32_t, Link*> questions_;
};

}  // namespace distfuse::vm
