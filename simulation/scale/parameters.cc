// SPDX-License-Identifier: Apache-2.0
#include "simulation/scale/parameters.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <string>

namespace distfuse::scale {
namespace {

constexpr std::array kFields = {
    ParameterField{"wire_ns", &Parameters::wire_ns},
    ParameterField{"loop_wire_ns", &Parameters::loop_wire_ns},
    ParameterField{"host_read_ns", &Parameters::host_read_ns},
    ParameterField{"nic_read_ns", &Parameters::nic_read_ns},
    ParameterField{"nic_write_ns", &Parameters::nic_write_ns},
    ParameterField{"atomic_ns", &Parameters::atomic_ns},
    ParameterField{"same_word_atomic_ns", &Parameters::same_word_atomic_ns},
    ParameterField{"link_ns_per_byte", &Parameters::link_ns_per_byte},
    ParameterField{"connections_per_client", &Parameters::connections_per_client},
    ParameterField{"cached_connections", &Parameters::cached_connections},
    ParameterField{"miss_ns", &Parameters::miss_ns},
    ParameterField{"client_post_ns", &Parameters::client_post_ns},
    ParameterField{"client_nic_ns", &Parameters::client_nic_ns},
    ParameterField{"client_wake_ns", &Parameters::client_wake_ns},
    ParameterField{"client_message_ns", &Parameters::client_message_ns},
    ParameterField{"shed_shared_ns", &Parameters::shed_shared_ns},
    ParameterField{"shed_exclusive_ns", &Parameters::shed_exclusive_ns},
    ParameterField{"lockd_wake_ns", &Parameters::lockd_wake_ns},
    ParameterField{"lockd_receive_ns", &Parameters::lockd_receive_ns},
    ParameterField{"lockd_send_ns", &Parameters::lockd_send_ns},
    ParameterField{"lockd_core_ns", &Parameters::lockd_core_ns},
    ParameterField{"lockd_waiter_ns", &Parameters::lockd_waiter_ns},
    ParameterField{"lockd_session_ns", &Parameters::lockd_session_ns},
    ParameterField{"hold_divisor", &Parameters::hold_divisor},
};

struct Point {
  double connections;
  double rate;  // million operations a second
};

// A ConnectX-6 whose READs and WRITEs go over so many connections in turn (docs/scale.md). The last READ is extrapolated: from 512
// to 4096 connections the time of one doubled.
constexpr std::array kReads = {Point{32, 83}, Point{64, 55}, Point{512, 42}, Point{4096, 21},
                               Point{32768, 10.5}};
constexpr std::array kWrites = {Point{32, 123}, Point{512, 122}, Point{4096, 111},
                                Point{16384, 105}, Point{32768, 102}};

/// Between the points, the time of one operation grows with the logarithm of the connections.
template <std::size_t kCount>
double penalty_ns(const std::array<Point, kCount>& points, double connections) {
  const double first = 1000 / points.front().rate;
  if (connections <= points.front().connections) return 0;
  for (std::size_t i = 1; i < kCount; ++i) {
    if (connections > points[i].connections) continue;
    const double low = 1000 / points[i - 1].rate, high = 1000 / points[i].rate;
    const double part = std::log(connections / points[i - 1].connections) /
                        std::log(points[i].connections / points[i - 1].connections);
    return low + (high - low) * part - first;
  }
  return 1000 / points.back().rate - first;
}

}  // namespace

std::span<const ParameterField> parameter_fields() {
  return kFields;
}

bool set_parameter(Parameters& parameters, std::string_view assignment) {
  const auto equals = assignment.find('=');
  if (equals == std::string_view::npos) return false;
  const std::string value(assignment.substr(equals + 1));
  char* end = nullptr;
  const double number = std::strtod(value.c_str(), &end);
  if (value.empty() || *end != '\0' || !(number >= 0) || !std::isfinite(number)) return false;
  for (const auto& field : kFields) {
    if (field.name != assignment.substr(0, equals)) continue;
    parameters.*field.member = number;
    return true;
  }
  return false;
}

double read_penalty_ns(double connections) {
  return penalty_ns(kReads, connections);
}

double write_penalty_ns(double connections) {
  return penalty_ns(kWrites, connections);
}

}  // namespace distfuse::scale
