// SPDX-License-Identifier: Apache-2.0
// What the calls of POSIX answer in a folder, one line each: "what: result". The same program in a folder of a local filesystem says what is to be
// expected (compare). Root runs it; other users are children that change their ids.   posix_calls FOLDER
#include <fcntl.h>
#include <grp.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace {

constexpr uid_t kUser = 12001, kOther = 12002;
constexpr gid_t kGroup = 12001, kOtherGroup = 12002;

void say(const std::string& what, const std::string& result) {
  std::printf("%s: %s\n", what.c_str(), result.c_str());
  std::fflush(stdout);
}

/// 0 or more: "ok"; else errno's name. Descriptors are closed by the caller.
std::string outcome(long result) {
  return result >= 0 ? "ok" : strerrorname_np(errno);
}

void call(const std::string& what, long result) {
  say(what, outcome(result));
}

/// Of calls that give a number.
void number(const std::string& what, long long result) {
  say(what, result < 0 ? strerrorname_np(errno) : std::to_string(result));
}

int opens(const std::string& what, const std::string& path, int flags, mode_t mode = 0644) {
  const int fd = open(path.c_str(), flags, mode);
  call("open " + what, fd);
  return fd;
}

void opens_and_closes(const std::string& what, const std::string& path, int flags,
                      mode_t mode = 0644) {
  const int fd = opens(what, path, flags, mode);
  if (fd >= 0) close(fd);
}

void make(const std::string& path, const std::string& text = "text", mode_t mode = 0644) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, mode);
  if (fd < 0 || write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    std::perror(path.c_str());
  close(fd);
  chmod(path.c_str(), mode);
}

struct stat look(const std::string& path) {
  struct stat s {};
  if (lstat(path.c_str(), &s) != 0) s.st_mode = 0;
  return s;
}

std::string mode_of(const std::string& path) {
  char text[16];
  std::snprintf(text, sizeof text, "%06o", look(path).st_mode);
  return text;
}

/// In a child with these ids and no other groups.
void as(uid_t uid, gid_t gid, const std::function<void()>& act) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (setgroups(0, nullptr) != 0 || setresgid(gid, gid, gid) != 0 ||
        setresuid(uid, uid, uid) != 0)
      std::perror("change of ids");
    else
      act();
    std::fflush(stdout);
    _exit(0);
  }
  waitpid(child, nullptr, 0);
}

/// Which times a call has changed: m, c, or neither.
std::string changed(const std::string& path, const std::function<void()>& act) {
  const struct stat before = look(path);
  usleep(20000);
  act();
  const struct stat after = look(path);
  const auto differ = [](const timespec& a, const timespec& b) {
    return a.tv_sec != b.tv_sec || a.tv_nsec != b.tv_nsec;
  };
  std::string result;
  if (differ(before.st_mtim, after.st_mtim)) result += "m";
  if (differ(before.st_ctim, after.st_ctim)) result += "c";
  return result.empty() ? "-" : result;
}

void names() {
  const std::string longest(255, 'n'), too_long(256, 'n');
  opens_and_closes("of 255 bytes", longest, O_CREAT | O_RDWR);
  call("unlink of 255 bytes", unlink(longest.c_str()));
  opens_and_closes("of 256 bytes", too_long, O_CREAT | O_RDWR);
  call("mkdir of 256 bytes", mkdir(too_long.c_str(), 0755));
  call("symlink of 256 bytes", symlink("x", too_long.c_str()));
  call("mknod of 256 bytes", mknod(too_long.c_str(), S_IFIFO | 0644, 0));
  call("unlink of 256 bytes", unlink(too_long.c_str()));
  call("rmdir of 256 bytes", rmdir(too_long.c_str()));
  make("short");
  call("link to 256 bytes", link("short", too_long.c_str()));
  call("rename to 256 bytes", rename("short", too_long.c_str()));
  call("rename from 256 bytes", rename(too_long.c_str(), "short2"));
  struct stat s {};
  call("stat of 256 bytes", stat(too_long.c_str(), &s));
  std::string path;
  while (path.size() < PATH_MAX) path += "./";
  call("stat of a path of PATH_MAX", stat((path + "short").c_str(), &s));
  call("stat of the empty path", stat("", &s));
  call("stat of file/", stat("short/", &s));
  call("stat of file/x", stat("short/x", &s));
  opens_and_closes("file/", "short/", O_RDONLY);
  opens_and_closes("new/ to create", "new/", O_CREAT | O_RDWR);
  call("mkdir new/", mkdir("new/", 0755));
  call("unlink file/", unlink("short/"));
  call("rename file to new2/", rename("short", "new2/"));
  call("rename folder/ to folder2/", rename("new/", "new2/"));
  call("rmdir .", rmdir("new2/."));
  call("rmdir ..", rmdir("new2/.."));
  call("rename .", rename("new2/.", "x"));
  call("mkdir .", mkdir(".", 0755));
  call("unlink ..", unlink(".."));
  call("a name with every byte", mkdir("\x01\x7f\xff\xfe *?\\\"'\n", 0755));
  call("its rmdir", rmdir("\x01\x7f\xff\xfe *?\\\"'\n"));
}

void links() {
  call("symlink to itself", symlink("self", "self"));
  call("symlink a to b", symlink("loop_b", "loop_a"));
  call("symlink b to a", symlink("loop_a", "loop_b"));
  struct stat s {};
  call("stat of a loop", stat("loop_a", &s));
  call("stat through itself", stat("self/x", &s));
  opens_and_closes("of a loop to create", "loop_a", O_CREAT | O_RDWR);
  call("symlink that dangles", symlink("dangling_target", "dangling"));
  opens_and_closes("of a dangling symlink", "dangling", O_RDONLY);
  opens_and_closes("exclusive of a dangling symlink", "dangling", O_CREAT | O_EXCL | O_RDWR);
  opens_and_closes("not followed", "dangling", O_RDONLY | O_NOFOLLOW);
  opens_and_closes("to create what it dangles to", "dangling", O_CREAT | O_RDWR);
  call("stat of the target", stat("dangling_target", &s));
  call("mkdir over a symlink", mkdir("dangling", 0755));
  char buffer[4] = {};
  number("readlink into 4 bytes", readlink("dangling", buffer, sizeof buffer));
  number("readlink of a file", readlink("dangling_target", buffer, sizeof buffer));
  say("size of a symlink", std::to_string(look("dangling").st_size));
  const std::string target(4095, 't');
  call("symlink of 4095 bytes", symlink(target.c_str(), "long_link"));
  call("symlink of 4096 bytes", symlink((target + "t").c_str(), "longer_link"));
  call("symlink to nothing", symlink("", "empty_link"));
  call("symlink over a file", symlink("x", "dangling_target"));
  call("link", link("dangling_target", "second"));
  number("links of a file with two names", static_cast<long long>(look("second").st_nlink));
  call("link over a name", link("dangling_target", "second"));
  mkdir("folder", 0755);
  call("link of a folder", link("folder", "folder_link"));
  call("link of a symlink", linkat(AT_FDCWD, "dangling", AT_FDCWD, "symlink2", 0));
  say("what it is", mode_of("symlink2"));
  const int fd = open("second", O_RDWR);
  unlink("second");
  unlink("dangling_target");
  fstat(fd, &s);
  number("links of a file without names", static_cast<long long>(s.st_nlink));
  call("write to it", write(fd, "x", 1));
  close(fd);
}

void kinds() {
  make("file");
  mkdir("dir", 0755);
  mkdir("dir/sub", 0755);
  make("dir/sub/f");
  opens_and_closes("of a folder to write", "dir", O_WRONLY);
  opens_and_closes("of a folder to create", "dir", O_CREAT | O_RDONLY);
  opens_and_closes("of a file as a folder", "file", O_RDONLY | O_DIRECTORY);
  opens_and_closes("of a file exclusively", "file", O_CREAT | O_EXCL | O_RDWR);
  opens_and_closes("of nothing", "nothing", O_RDWR);
  opens_and_closes("in nothing", "nothing/x", O_CREAT | O_RDWR);
  opens_and_closes("by path alone", "file", O_PATH);
  char byte = 0;
  int fd = open("dir", O_RDONLY);
  number("read of a folder", read(fd, &byte, 1));
  close(fd);
  call("unlink of a folder", unlink("dir"));
  call("rmdir of a file", rmdir("file"));
  call("rmdir of a full folder", rmdir("dir"));
  call("rmdir of nothing", rmdir("nothing"));
  call("mkdir over a file", mkdir("file", 0755));
  call("mkdir in a file", mkdir("file/x", 0755));
  call("rename of a file over a folder", rename("file", "dir"));
  call("rename of a folder over a file", rename("dir", "file"));
  call("rename of a folder into itself", rename("dir", "dir/sub/x"));
  mkdir("full", 0755);
  make("full/f");
  call("rename of a folder over a full one", rename("dir", "full"));
  mkdir("empty", 0755);
  call("rename of a folder over an empty one", rename("full", "empty"));
  call("rename of nothing", rename("nothing", "x"));
  call("rename to itself", rename("file", "file"));
  link("file", "file_again");
  call("rename to another name of the same", rename("file", "file_again"));
  call("which leaves both", access("file", F_OK) + access("file_again", F_OK));
  call("rename without replacing",
       renameat2(AT_FDCWD, "file", AT_FDCWD, "empty/f", RENAME_NOREPLACE));
  call("exchange of a file and a folder",
       renameat2(AT_FDCWD, "file", AT_FDCWD, "empty", RENAME_EXCHANGE));
  say("what the file's name is then", mode_of("file").substr(0, 3));
  call("exchange with nothing", renameat2(AT_FDCWD, "file", AT_FDCWD, "nothing", RENAME_EXCHANGE));
  call("rename with odd flags", renameat2(AT_FDCWD, "file", AT_FDCWD, "x", 64));
  for (const auto& [name, mode] : {std::pair<const char*, mode_t>{"fifo", S_IFIFO | 0600},
                                   {"socket", S_IFSOCK | 0600},
                                   {"character", S_IFCHR | 0600},
                                   {"block", S_IFBLK | 0600},
                                   {"regular", S_IFREG | 0600}}) {
    call(std::string("mknod ") + name, mknod(name, mode, makedev(1, 3)));
    say(std::string("mode of ") + name, mode_of(name));
  }
  number("device of character", static_cast<long long>(look("character").st_rdev));
  call("mknod folder", mknod("madedir", S_IFDIR | 0700, 0));
  number("read of the null device", read(fd = open("character", O_RDONLY), &byte, 1));
  close(fd);
}

void sizes() {
  make("sized", "0123456789");
  call("truncate", truncate("sized", 4));
  number("size", look("sized").st_size);
  call("truncate to more", truncate("sized", 5000));
  number("size", look("sized").st_size);
  call("truncate below 0", truncate("sized", -1));
  call("truncate of a folder", truncate(".", 0));
  call("truncate of nothing", truncate("nothing", 0));
  int fd = open("sized", O_RDONLY);
  call("ftruncate of a file to read", ftruncate(fd, 0));
  number("write to a file to read", write(fd, "x", 1));
  number("lseek below 0", lseek(fd, -1, SEEK_SET));
  number("lseek to the end", lseek(fd, 0, SEEK_END));
  number("lseek to data past the end", lseek(fd, 5000, SEEK_DATA));
  number("lseek to a hole", lseek(fd, 0, SEEK_HOLE) >= 0 ? 1 : 0);
  number("lseek with an odd whence", lseek(fd, 0, 17));
  close(fd);
  fd = open("sized", O_WRONLY);
  char byte = 0;
  number("read of a file to write", read(fd, &byte, 1));
  number("pwrite below 0", pwrite(fd, "x", 1, -1));
  number("write of nothing", write(fd, "x", 0));
  number("pwrite far away", pwrite(fd, "x", 1, 1LL << 32));
  number("size", look("sized").st_size);
  number("fallocate below 0", fallocate(fd, 0, -1, 10));
  number("fallocate of nothing", fallocate(fd, 0, 0, 0));
  number("fallocate", fallocate(fd, 0, 0, 100));
  number("fallocate of a hole", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
  number("fallocate of a hole that grows", fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4096));
  close(fd);
  fd = open("sized", O_WRONLY | O_APPEND);
  truncate("sized", 3);
  number("pwrite to append", pwrite(fd, "xy", 2, 0));
  number("size", look("sized").st_size);
  close(fd);
  opens_and_closes("to truncate", "sized", O_WRONLY | O_TRUNC);
  number("size", look("sized").st_size);
  make("source", std::string(10000, 's'));
  fd = open("source", O_RDWR);
  loff_t from = 0, to = 5000;
  number("copy_file_range onto itself", copy_file_range(fd, &from, fd, &to, 6000, 0));
  from = 0, to = 20000;
  number("copy_file_range in a file", copy_file_range(fd, &from, fd, &to, 6000, 0));
  number("size", look("source").st_size);
  from = 1 << 20, to = 0;
  number("copy_file_range past the end", copy_file_range(fd, &from, fd, &to, 10, 0));
  void* map = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  call("mmap", map == MAP_FAILED ? -1 : 0);
  munmap(map, 4096);
  close(fd);
  fd = open("source", O_RDONLY);
  map = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  call("mmap to write of a file to read", map == MAP_FAILED ? -1 : 0);
  close(fd);
}

void permissions() {
  chmod(".", 0777);
  make("root_only", "x", 0600);
  make("readable", "x", 0644);
  make("everybody", "x", 0666);
  make("theirs", "x", 0600);
  chown("theirs", kUser, kGroup);
  make("by_group", "x", 0060);
  chown("by_group", 0, kGroup);
  mkdir("closed", 0700);
  make("closed/f", "x", 0666);
  mkdir("listed", 0744);
  make("listed/f", "x", 0666);
  as(kUser, kGroup, [] {
    opens_and_closes("root's as a user", "root_only", O_RDONLY);
    opens_and_closes("readable as a user", "readable", O_RDONLY);
    opens_and_closes("readable as a user to write", "readable", O_WRONLY);
    opens_and_closes("everybody's as a user to write", "everybody", O_RDWR);
    opens_and_closes("one's own", "theirs", O_RDWR);
    opens_and_closes("the group's", "by_group", O_RDWR);
    opens_and_closes("in a closed folder", "closed/f", O_RDONLY);
    opens_and_closes("in a folder that may only be listed", "listed/f", O_RDONLY);
    opens_and_closes("of a closed folder", "closed", O_RDONLY);
    struct stat s {};
    call("stat in a closed folder", stat("closed/f", &s));
    call("stat of nothing in a closed folder", stat("closed/nothing", &s));
    call("unlink in a folder that may not be written", unlink("listed/f"));
    call("mkdir in it", mkdir("listed/d", 0755));
    call("access to read", access("readable", R_OK));
    call("access to write", access("readable", W_OK));
    call("access to run", access("everybody", X_OK));
    call("chmod of root's", chmod("everybody", 0600));
    call("chmod of one's own", chmod("theirs", 0640));
    call("chown of root's", chown("everybody", kUser, kGroup));
    call("chown of one's own to another", chown("theirs", kOther, kGroup));
    call("chown of one's own to its group", chown("theirs", kUser, kGroup));
    call("chown of one's own to another group", chown("theirs", kUser, kOtherGroup));
    call("utimens of root's, now", utimensat(AT_FDCWD, "everybody", nullptr, 0));
    const timespec times[2] = {{1, 0}, {2, 0}};
    call("utimens of root's, then", utimensat(AT_FDCWD, "everybody", times, 0));
    call("utimens of what may only be read, now", utimensat(AT_FDCWD, "readable", nullptr, 0));
    call("utimens of one's own, then", utimensat(AT_FDCWD, "theirs", times, 0));
    call("truncate of what may only be read", truncate("readable", 0));
    call("link of root's", link("root_only", "linked_by_user"));
    call("mknod of a device", mknod("device_by_user", S_IFCHR | 0600, makedev(1, 3)));
    call("mknod of a fifo", mknod("fifo_by_user", S_IFIFO | 0600, 0));
  });
  number("owner of what a user made", look("fifo_by_user").st_uid);
  number("its group", look("fifo_by_user").st_gid);
  call("access of root to run what nobody may", access("readable", X_OK));
}

void sticky() {
  mkdir("sticky", 01777);
  chmod("sticky", 01777);
  make("sticky/roots", "x", 0666);
  as(kUser, kGroup, [] {
    make("sticky/mine");
    mkdir("sticky/my_folder", 0755);
    call("unlink of root's in a sticky folder", unlink("sticky/roots"));
    call("rename of root's", rename("sticky/roots", "sticky/x"));
    call("rename over root's", rename("sticky/mine", "sticky/roots"));
    call("rename out of it", rename("sticky/roots", "roots_out"));
    call("rename of one's own", rename("sticky/mine", "sticky/mine2"));
  });
  as(kOther, kOtherGroup, [] {
    call("unlink of another's", unlink("sticky/mine2"));
    call("rmdir of another's", rmdir("sticky/my_folder"));
  });
  as(kUser, kGroup, [] { call("unlink of one's own", unlink("sticky/mine2")); });
  mkdir("sticky_of_user", 0777);
  chown("sticky_of_user", kUser, kGroup);
  chmod("sticky_of_user", 01777);
  make("sticky_of_user/roots", "x", 0666);
  as(kUser, kGroup,
     [] { call("unlink in one's own sticky folder", unlink("sticky_of_user/roots")); });
}

void set_ids() {
  const auto fresh = [](mode_t mode) {
    unlink("setid");
    make("setid", "text", 0777);
    chown("setid", kUser, kGroup);
    chmod("setid", mode);
  };
  fresh(06777);
  say("set-ids after chmod", mode_of("setid"));
  as(kOther, kOtherGroup, [] {
    const int fd = open("setid", O_WRONLY);
    call("write by another", write(fd, "x", 1));
    close(fd);
  });
  say("set-ids after it", mode_of("setid"));
  fresh(06777);
  as(kOther, kOtherGroup, [] { call("truncate by another", truncate("setid", 1)); });
  say("set-ids after it", mode_of("setid"));
  fresh(06777);
  as(kUser, kGroup, [] { call("chown by its owner", chown("setid", -1, kGroup)); });
  say("set-ids after it", mode_of("setid"));
  fresh(06777);
  call("chown by root", chown("setid", kOther, kOtherGroup));
  say("set-ids after it", mode_of("setid"));
  fresh(06767);
  call("chown by root without group execution", chown("setid", kOther, kOtherGroup));
  say("set-ids after it", mode_of("setid"));
  fresh(0777);
  chown("setid", kUser, kOtherGroup);
  as(kUser, kGroup, [] { call("chmod to the set-id of a strange group", chmod("setid", 02777)); });
  say("set-ids after it", mode_of("setid"));
  mkdir("gdir", 0777);
  chown("gdir", 0, kGroup);
  chmod("gdir", 02777);
  as(kOther, kOtherGroup, [] {
    make("gdir/f");
    mkdir("gdir/d", 0755);
    mknod("gdir/p", S_IFIFO | 02755, 0);
    close(open("gdir/s", O_CREAT | O_WRONLY, 02775));
  });
  number("group of a file in a set-gid folder", look("gdir/f").st_gid);
  number("group of a folder there", look("gdir/d").st_gid);
  say("mode of a folder there", mode_of("gdir/d"));
  say("mode of a fifo there", mode_of("gdir/p"));
  say("mode of a set-gid file there", mode_of("gdir/s"));
}

void masks() {
  for (const mode_t mask : {0U, 022U, 077U, 0777U}) {
    umask(mask);
    char name[32];
    std::snprintf(name, sizeof name, "mask%o", mask);
    close(open(name, O_CREAT | O_RDWR, 0777));
    say(std::string("mode of a file under ") + name, mode_of(name));
    mkdir((std::string(name) + "d").c_str(), 0777);
    say(std::string("mode of a folder under ") + name, mode_of(std::string(name) + "d"));
  }
  umask(022);
}

void times() {
  mkdir("clock", 0755);
  make("clock/f");
  const auto both = [](const std::string& what, const std::function<void()>& act) {
    const std::string folder = changed("clock", [&] { say(what, changed("clock/f", act)); });
    say(what + ", its folder", folder);
  };
  both("times after chmod", [] { chmod("clock/f", 0600); });
  both("times after chown", [] { chown("clock/f", 1, 1); });
  both("times after write", [] {
    const int fd = open("clock/f", O_WRONLY);
    (void)!write(fd, "y", 1);
    close(fd);
  });
  both("times after write of nothing", [] {
    const int fd = open("clock/f", O_WRONLY);
    (void)!write(fd, "y", 0);
    close(fd);
  });
  both("times after truncate", [] { truncate("clock/f", 2); });
  both("times after ftruncate to the same size", [] {
    const int fd = open("clock/f", O_WRONLY);
    (void)!ftruncate(fd, 2);
    close(fd);
  });
  both("times after open to truncate", [] { close(open("clock/f", O_WRONLY | O_TRUNC)); });
  both("times after open to truncate what is empty",
       [] { close(open("clock/f", O_WRONLY | O_TRUNC)); });
  both("times after a store to a mapping", [] {
    truncate("clock/f", 4096);
    usleep(20000);
    const int fd = open("clock/f", O_RDWR);
    auto* map = static_cast<char*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    map[1] = 'z';
    msync(map, 4096, MS_SYNC);
    munmap(map, 4096);
    close(fd);
  });
  both("times after fallocate", [] {
    const int fd = open("clock/f", O_RDWR);
    (void)!fallocate(fd, 0, 0, 9000);
    close(fd);
  });
  both("times after setxattr", [] { setxattr("clock/f", "user.a", "b", 1, 0); });
  both("times after link", [] { link("clock/f", "clock/g"); });
  both("times after unlink of the other name", [] { unlink("clock/g"); });
  both("times after rename there and back", [] {
    rename("clock/f", "clock/h");
    rename("clock/h", "clock/f");
  });
  both("times after a refused rename", [] { rename("clock/f", "clock/nothing/x"); });
  both("times after utimens", [] {
    const timespec given[2] = {{100, 5}, {200, 7}};
    utimensat(AT_FDCWD, "clock/f", given, 0);
  });
  number("mtime that was set", look("clock/f").st_mtim.tv_sec);
  number("its nanoseconds", look("clock/f").st_mtim.tv_nsec);
  number("atime that was set", look("clock/f").st_atim.tv_sec);
  both("times after a read", [] {
    char byte = 0;
    const int fd = open("clock/f", O_RDONLY);
    (void)!read(fd, &byte, 1);
    close(fd);
  });
  say("times of a folder after mkdir", changed("clock", [] { mkdir("clock/d", 0755); }));
  say("times of a folder after mknod",
      changed("clock", [] { mknod("clock/p", S_IFIFO | 0600, 0); }));
  say("times of a folder after symlink", changed("clock", [] { symlink("x", "clock/s"); }));
  say("times of a folder after rmdir", changed("clock", [] { rmdir("clock/d"); }));
  say("times of a folder after open of what exists",
      changed("clock", [] { close(open("clock/f", O_CREAT | O_RDWR, 0644)); }));
  const timespec bad[2] = {{0, 2000000000}, {0, 0}};
  call("utimens with too many nanoseconds", utimensat(AT_FDCWD, "clock/f", bad, 0));
  const timespec omit[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
  call("utimens that omits both", utimensat(AT_FDCWD, "clock/f", omit, 0));
}

void link_counts() {
  mkdir("count", 0755);
  const auto links = [](const char* path) { return static_cast<long long>(look(path).st_nlink); };
  number("links of a new folder", links("count"));
  mkdir("count/a", 0755);
  mkdir("count/b", 0755);
  number("with two folders", links("count"));
  make("count/f");
  number("with a file", links("count"));
  rename("count/a", "count/b/a");
  number("after one moved into the other", links("count"));
  number("of the other", links("count/b"));
  rename("count/b/a", "count/a");
  mkdir("count/c", 0755);
  rename("count/a", "count/c");
  number("after one replaced another", links("count"));
  rmdir("count/b");
  number("after rmdir", links("count"));
  call("rmdir of the working folder", chdir("count/c") == 0 ? rmdir("../c") : -1);
  call("open in a folder that is gone", open("x", O_CREAT | O_RDWR, 0644));
  call("mkdir in a folder that is gone", mkdir("x", 0755));
  (void)!chdir("../..");
}

void attributes() {
  make("attributed");
  call("setxattr", setxattr("attributed", "user.one", "value", 5, 0));
  call("setxattr to create it again", setxattr("attributed", "user.one", "v", 1, XATTR_CREATE));
  call("setxattr to replace nothing", setxattr("attributed", "user.two", "v", 1, XATTR_REPLACE));
  char buffer[16] = {};
  number("getxattr", getxattr("attributed", "user.one", buffer, sizeof buffer));
  number("getxattr's size", getxattr("attributed", "user.one", nullptr, 0));
  number("getxattr into too little", getxattr("attributed", "user.one", buffer, 2));
  number("getxattr of nothing", getxattr("attributed", "user.none", buffer, sizeof buffer));
  number("getxattr without a namespace", getxattr("attributed", "one", buffer, sizeof buffer));
  call("setxattr of a name of 256 bytes",
       setxattr("attributed", ("user." + std::string(251, 'x')).c_str(), "v", 1, 0));
  call("setxattr of 64 KiB and one",
       setxattr("attributed", "user.big", std::string(65537, 'v').data(), 65537, 0));
  call("setxattr of an empty value", setxattr("attributed", "user.empty", "", 0, 0));
  number("its size", getxattr("attributed", "user.empty", nullptr, 0));
  call("removexattr", removexattr("attributed", "user.empty"));
  call("removexattr of nothing", removexattr("attributed", "user.empty"));
  symlink("attributed", "attributed_link");
  call("lsetxattr of a symlink", lsetxattr("attributed_link", "user.x", "v", 1, 0));
  call("setxattr of a folder", setxattr(".", "user.x", "v", 1, 0));
  call("setxattr trusted", setxattr("attributed", "trusted.x", "v", 1, 0));
  chmod("attributed", 0644);
  as(kUser, kGroup, [] {
    char value[16];
    call("setxattr by a user", setxattr("attributed", "user.one", "x", 1, 0));
    number("getxattr by a user", getxattr("attributed", "user.one", value, sizeof value));
    number("getxattr trusted by a user", getxattr("attributed", "trusted.x", value, sizeof value));
  });
}

/// A small POSIX ACL: u::rwx, u:12001:rwx, g::r-x, m::r-x, o::---
void access_lists() {
  const auto entry = [](std::string& to, unsigned short tag, unsigned short perm, unsigned id) {
    to.append(reinterpret_cast<const char*>(&tag), 2);
    to.append(reinterpret_cast<const char*>(&perm), 2);
    to.append(reinterpret_cast<const char*>(&id), 4);
  };
  std::string list("\2\0\0\0", 4);
  entry(list, 1, 7, ~0U);
  entry(list, 2, 7, kUser);
  entry(list, 4, 5, ~0U);
  entry(list, 16, 5, ~0U);
  entry(list, 32, 0, ~0U);
  make("listed_file", "x", 0600);
  call("set of an access list",
       setxattr("listed_file", "system.posix_acl_access", list.data(), list.size(), 0));
  say("the mode that it makes", mode_of("listed_file"));
  number("size of the list", getxattr("listed_file", "system.posix_acl_access", nullptr, 0));
  as(kUser, kGroup, [] {
    opens_and_closes("of a file whose list names the user", "listed_file", O_RDONLY);
    opens_and_closes("to write, which the mask forbids", "listed_file", O_WRONLY);
  });
  as(kOther, kOtherGroup,
     [] { opens_and_closes("by one whom it does not name", "listed_file", O_RDONLY); });
  chmod("listed_file", 0670);
  as(kUser, kGroup,
     [] { opens_and_closes("to write, after chmod opened the mask", "listed_file", O_WRONLY); });
  call("set of a list that is cut off",
       setxattr("listed_file", "system.posix_acl_access", list.data(), list.size() - 3, 0));
  mkdir("listed_folder", 0755);
  call("set of a default list",
       setxattr("listed_folder", "system.posix_acl_default", list.data(), list.size(), 0));
  close(open("listed_folder/f", O_CREAT | O_RDWR, 0666));
  mkdir("listed_folder/d", 0777);
  say("mode of a file made under it", mode_of("listed_folder/f"));
  say("mode of a folder made under it", mode_of("listed_folder/d"));
  number("the folder's default list",
         getxattr("listed_folder/d", "system.posix_acl_default", nullptr, 0));
  number("the file's list", getxattr("listed_folder/f", "system.posix_acl_access", nullptr, 0));
  call("a default list of a file",
       setxattr("listed_file", "system.posix_acl_default", list.data(), list.size(), 0));
  call("removal of the list", removexattr("listed_file", "system.posix_acl_access"));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || chdir(argv[1]) != 0) {
    std::fprintf(stderr, "usage: posix_calls FOLDER\n");
    return 2;
  }
  umask(022);
  const std::pair<const char*, void (*)()> parts[] = {{"names", names},
                                                      {"links", links},
                                                      {"kinds", kinds},
                                                      {"sizes", sizes},
                                                      {"permissions", permissions},
                                                      {"sticky", sticky},
                                                      {"set_ids", set_ids},
                                                      {"masks", masks},
                                                      {"times", times},
                                                      {"link_counts", link_counts},
                                                      {"attributes", attributes},
                                                      {"access_lists", access_lists}};
  for (const auto& [name, run] : parts) {
    if (mkdir(name, 0755) != 0 || chdir(name) != 0) {
      std::perror(name);
      return 1;
    }
    std::printf("# %s\n", name);
    run();
    if (chdir("..") != 0) return 1;
  }
  return 0;
}
