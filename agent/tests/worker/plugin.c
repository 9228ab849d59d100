/* A delegate library for tests. It takes every node and computes nothing; options say how it misbehaves:
   do_create / do_prepare / do_invoke = crash | hang | refuse | exit | probe, from_call = N: only from the
   N-th invoke on, sleep_ms = N: how long an invoke takes.

   The structures are the beginnings of those in TensorFlow Lite 2.17's C headers, which a plugin shares with
   the library by their layout alone. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct { int size; int data[]; } IntArray;
typedef struct Context Context;
typedef struct Delegate Delegate;
typedef struct Node Node;
typedef struct {
  void *(*init)(Context *, const char *, size_t);
  void (*free)(Context *, void *);
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  const char *(*profiling_string)(const Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *external;
  void *(*async_kernel)(Context *, Node *);
  uint64_t inplace_operator;
} Registration;
struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context *, IntArray **);
  void *tensors;
  void *impl;
  int (*resize_tensor)(Context *, void *, IntArray *);
  void (*report_error)(Context *, const char *, ...);
  int (*add_tensors)(Context *, int, int *);
  int (*get_node_and_registration)(Context *, int, Node **, Registration **);
  int (*replace_node_subsets)(Context *, Registration, const IntArray *, Delegate *);
};
struct Delegate {
  void *data;
  int (*prepare)(Context *, Delegate *);
  void *copy_from, *copy_to, *free_handle;
  int64_t flags;
  void *opaque;
};

static char do_create[16], do_prepare[16], do_invoke[16];
static int from_call, sleep_ms, calls;
static void (*say)(const char *);

static void *nothing(void *unused) { return unused; }

static void result(char *text, size_t size, const char *what, long value) {
  size_t used = strlen(text);
  snprintf(text + used, size - used, "%s=%s ", what, value < 0 ? strerrorname_np(errno) : "ok");
}

/* Tries what no delegate may do. */
static void probe(char *text, size_t size) {
  text[0] = 0;
  errno = 0;
  result(text, size, "read-passwd", open("/etc/passwd", O_RDONLY));
  result(text, size, "read-program", open("/proc/self/exe", O_RDONLY));
  result(text, size, "read-cpuinfo", open("/proc/cpuinfo", O_RDONLY));
  result(text, size, "write-file", open("/tmp/edgeward-was-here", O_WRONLY | O_CREAT, 0600));
  result(text, size, "openat2", syscall(SYS_openat2, AT_FDCWD, "/", NULL, 0));
  result(text, size, "socket", socket(AF_INET, SOCK_STREAM, 0));
  result(text, size, "unix-socket", socket(AF_UNIX, SOCK_STREAM, 0));
  int pair[2];
  result(text, size, "socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  result(text, size, "kill-parent", kill(getppid(), 0));
  result(text, size, "signal-by-fcntl", fcntl(2, F_SETOWN, getppid()));
  result(text, size, "ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
  result(text, size, "fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
  result(text, size, "exec", execl("/bin/true", "true", NULL));
  result(text, size, "io_uring", syscall(SYS_io_uring_setup, 1, NULL));
  result(text, size, "bpf", syscall(SYS_bpf, 0, NULL, 0));
  result(text, size, "userfaultfd", syscall(SYS_userfaultfd, 0));
  result(text, size, "mount", syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL));
  result(text, size, "peek-parent", syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0));
  void *code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  result(text, size, "executable-memory", code == MAP_FAILED ? -1 : 0);
  pthread_t thread;
  errno = pthread_create(&thread, NULL, nothing, NULL);
  result(text, size, "thread", errno ? -1 : 0);
  char *memory = malloc(1 << 20);
  result(text, size, "memory", memory ? 0 : -1);
  free(memory);
}

/* 0: go on, 1: fail. */
static int act(const char *what, const char *where, void (*tell)(void *, const char *), void *to) {
  char text[2048];
  if (!strcmp(what, "crash")) { fprintf(stderr, "plugin: about to crash in %s\n", where); *(volatile int *)8 = 1; }
  if (!strcmp(what, "hang")) for (;;) pause();
  if (!strcmp(what, "exit")) _exit(7);
  if (!strcmp(what, "refuse")) { snprintf(text, sizeof text, "no device for %s", where); tell(to, text); return 1; }
  if (!strcmp(what, "probe")) { probe(text, sizeof text); tell(to, text); return 1; }
  return 0;
}

static void tell_context(void *to, const char *text) { ((Context *)to)->report_error(to, "%s", text); }
static void tell_caller(void *to, const char *text) { (void)to; if (say) say(text); }

static int kernel_prepare(Context *context, Node *node) { (void)context; (void)node; return 0; }
static int kernel_invoke(Context *context, Node *node) {
  (void)node;
  if (++calls < from_call) return 0;
  if (sleep_ms) usleep(sleep_ms * 1000);
  return act(do_invoke, "invoke", tell_context, context);
}

static int prepare(Context *context, Delegate *delegate) {
  if (act(do_prepare, "prepare", tell_context, context)) return 1;
  IntArray *plan;
  if (context->get_execution_plan(context, &plan)) return 1;
  IntArray *all = malloc(sizeof(int) * (plan->size + 1));
  memcpy(all, plan, sizeof(int) * (plan->size + 1));
  Registration kernel;
  memset(&kernel, 0, sizeof kernel);
  kernel.prepare = kernel_prepare;
  kernel.invoke = kernel_invoke;
  kernel.builtin_code = 51; /* a delegate's */
  kernel.custom_name = "TestPlugin";
  kernel.version = 1;
  int status = context->replace_node_subsets(context, kernel, all, delegate);
  free(all);
  return status;
}

Delegate *tflite_plugin_create_delegate(const char *const *keys, const char *const *values, size_t count,
                                        void (*report)(const char *)) {
  say = report;
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(keys[i], "do_create")) snprintf(do_create, sizeof do_create, "%s", values[i]);
    else if (!strcmp(keys[i], "do_prepare")) snprintf(do_prepare, sizeof do_prepare, "%s", values[i]);
    else if (!strcmp(keys[i], "do_invoke")) snprintf(do_invoke, sizeof do_invoke, "%s", values[i]);
    else if (!strcmp(keys[i], "from_call")) from_call = atoi(values[i]);
    else if (!strcmp(keys[i], "sleep_ms")) sleep_ms = atoi(values[i]);
    else { report("unknown option"); return NULL; }
  }
  if (act(do_create, "create", tell_caller, NULL)) return NULL;
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->prepare = prepare;
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
