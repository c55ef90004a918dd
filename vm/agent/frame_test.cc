// SPDX-License-Identifier: Apache-2.0
#include "vm/agent/frame.h"

#include <gtest/gtest.h>

namespace distfuse::vm {
namespace {

TEST(Frame, ComesBackWhole) {
  std::string bytes;
  encode_frame(bytes, 70000, FrameType::output, "abc");
  encode_frame(bytes, 1, FrameType::input, "");
  bool broken = false;
  auto first = decode_frame(bytes, broken);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->channel, 70000U);
  EXPECT_EQ(first->type, FrameType::output);
  EXPECT_EQ(first->payload, "abc");
  auto second = decode_frame(bytes, broken);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->payload, "");
  EXPECT_TRUE(bytes.empty());
  EXPECT_FALSE(broken);
}

TEST(Frame, APartIsWaitedFor) {
  std::string whole;
  encode_frame(whole, 5, FrameType::errors, "abcdef");
  for (std::size_t length = 0; length < whole.size(); ++length) {
    std::string part = whole.substr(0, length);
    bool broken = false;
    EXPECT_FALSE(decode_frame(part, broken)) << length;
    EXPECT_FALSE(broken);
    EXPECT_EQ(part.size(), length) << "nothing is taken";
  }
}

TEST(Frame, ALengthBeyondTheLimitBreaksTheLink) {
  std::string bytes = encode_u32(1) + '\1' + encode_u32(kMaxFrame + 1);
  bool broken = false;
  EXPECT_FALSE(decode_frame(bytes, broken));
  EXPECT_TRUE(broken);
}

TEST(Job, ComesBackWhole) {
  const JobRequest request{true, false, "/a b", {"X=1", "EMPTY="}, {"sh", "-c", ""}};
  const auto again = decode_job(encode_job(request));
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->terminal);
  EXPECT_FALSE(again->keep_input);
  EXPECT_EQ(again->folder, "/a b");
  EXPECT_EQ(again->environment, request.environment);
  EXPECT_EQ(again->arguments, request.arguments);
}

TEST(Job, AsTheHostWritesIt) {  // vm/tests/parts_test.py has the same bytes
  const std::string bytes("\x01/x\0001\0N=1\0a\0b c\0", 16);
  const auto job = decode_job(bytes);
  ASSERT_TRUE(job);
  EXPECT_EQ(job->folder, "/x");
  EXPECT_EQ(job->environment, std::vector<std::string>{"N=1"});
  EXPECT_EQ(job->arguments, (std::vector<std::string>{"a", "b c"}));
}

TEST(Job, NonsenseIsRefused) {
  const auto with_zeros = [](std::string text) {
    for (char& c : text)
      if (c == '|') c = '\0';
    return text;
  };
  for (const char* text : {"", "x", "x|", "x/|0|", "x/|1|a|", "x/|-1|a|b|", "x/|zwei|a|b|",
                           "x/|99999999999999999999|a|b|", "x/|0|no end"})
    EXPECT_FALSE(decode_job(with_zeros(text))) << text;
}

}  // namespace
}  // namespace distfuse::vm
