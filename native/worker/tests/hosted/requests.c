/* A library that asks the VM: messages, references, monitors, descriptors. */

#include <erl_nif.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NIF(name) static ERL_NIF_TERM name(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
#define ATOM(text) enif_make_atom(env, text)

static ErlNifResourceType *plain, *watching;
static ErlNifPid owner;
static ErlNifEnv *kept_env;
static ERL_NIF_TERM kept;

/* An object with a down callback. */
struct watcher {
    ErlNifMonitor monitor;
    int number;
    int ends[2];
};

static void tell_number(ErlNifEnv *env, const char *what, int number)
{
    enif_send(env, &owner, NULL, enif_make_tuple2(env, ATOM(what), enif_make_int(env, number)));
}

static void destroyed(ErlNifEnv *env, void *object) { tell_number(env, "destroyed", ((struct watcher *)object)->number); }

static void down(ErlNifEnv *env, void *object, ErlNifPid *pid, ErlNifMonitor *monitor)
{
    struct watcher *watcher = object;
    int gone = enif_demonitor_process(env, object, monitor);
    enif_send(env, &owner, NULL,
              enif_make_tuple(env, 5, ATOM("down"), enif_make_int(env, watcher->number), enif_make_pid(env, pid),
                              enif_make_monitor_term(env, monitor), enif_make_int(env, gone)));
}

static void stopped(ErlNifEnv *env, void *object, ErlNifEvent event, int direct)
{
    close(event);
    tell_number(env, direct ? "stopped" : "stopped later", ((struct watcher *)object)->number);
}

/* Newer than this header. */
extern int enif_set_option(ErlNifEnv *, int, ...);

static void thread_gone(void *priv_data) { printf("thread gone %s\n", (char *)priv_data); }

static int load(ErlNifEnv *env, void **priv_data, ERL_NIF_TERM info)
{
    ErlNifResourceTypeInit init = {destroyed, stopped, down};
    plain = enif_open_resource_type(env, NULL, "plain", NULL, ERL_NIF_RT_CREATE, NULL);
    watching = enif_open_resource_type_x(env, "watching", &init, ERL_NIF_RT_CREATE, NULL);
    kept_env = enif_alloc_env();
    *priv_data = "with its data";
    enif_set_option(env, 3, thread_gone);
    /* Asked before the library is loaded. */
    if (enif_is_tuple(env, info) && !enif_is_ref(env, enif_make_ref(env)))
        return 1;
    return 0;
}

NIF(echo) { return argv[0]; }
NIF(bind) { return enif_get_local_pid(env, argv[0], &owner) ? ATOM("ok") : ATOM("no"); }

/* To a pid, so many times, from the call's env. */
NIF(send)
{
    ErlNifPid pid;
    int count, sent = 0;
    if (!enif_get_local_pid(env, argv[0], &pid) || !enif_get_int(env, argv[2], &count))
        return enif_make_badarg(env);
    for (int i = 0; i < count; i++)
        sent += enif_send(env, &pid, NULL, argv[1]);
    return enif_make_int(env, sent);
}

/* From an env of its own, which is empty afterwards if that succeeded. */
NIF(send_env)
{
    ErlNifPid pid;
    enif_get_local_pid(env, argv[0], &pid);
    ErlNifEnv *own = enif_alloc_env();
    ERL_NIF_TERM message = enif_make_tuple2(own, enif_make_copy(own, argv[1]), enif_make_int(own, 1));
    int sent = enif_send(env, &pid, own, message);
    message = enif_make_int(own, 2);
    enif_free_env(own);
    return enif_make_int(env, sent);
}

static void *sender(void *argument)
{
    ErlNifEnv *own = argument;
    for (int i = 0; i < 100; i++)
        enif_send(NULL, &owner, own, enif_make_int(own, i));
    enif_free_env(own);
    return NULL;
}

/* From a thread, to who has bound. */
NIF(send_thread)
{
    ErlNifTid thread;
    enif_thread_create("sender", &thread, sender, enif_alloc_env(), NULL);
    enif_thread_join(thread, NULL);
    return ATOM("ok");
}

NIF(port_command)
{
    ErlNifPort port;
    if (!enif_get_local_port(env, argv[0], &port))
        return enif_make_badarg(env);
    return enif_make_int(env, enif_port_command(env, &port, NULL, argv[1]));
}

NIF(refs)
{
    int count;
    ERL_NIF_TERM list = enif_make_list(env, 0);
    enif_get_int(env, argv[0], &count);
    for (int i = 0; i < count; i++)
        list = enif_make_list_cell(env, enif_make_ref(env), list);
    return list;
}

NIF(unique)
{
    int properties;
    enif_get_int(env, argv[0], &properties);
    return enif_make_unique_integer(env, properties);
}

NIF(alive)
{
    ErlNifPid pid;
    ErlNifPort port;
    if (enif_get_local_pid(env, argv[0], &pid))
        return enif_make_int(env, enif_is_process_alive(env, &pid));
    if (enif_get_local_port(env, argv[0], &port))
        return enif_make_int(env, enif_is_port_alive(env, &port));
    return enif_make_int(env, enif_is_current_process_alive(env));
}

NIF(whereis)
{
    ErlNifPid pid;
    ErlNifPort port;
    if (enif_whereis_pid(env, argv[0], &pid))
        return enif_make_pid(env, &pid);
    if (enif_whereis_port(env, argv[0], &port))
        return enif_make_tuple1(env, port.port_id);
    return ATOM("undefined");
}

NIF(existing)
{
    char name[1100];
    ERL_NIF_TERM atom;
    if (enif_get_string(env, argv[0], name, sizeof name, ERL_NIF_LATIN1) <= 0)
        return enif_make_badarg(env);
    return enif_make_existing_atom(env, name, &atom, ERL_NIF_LATIN1) ? atom : enif_make_int(env, 0);
}

NIF(read_safe)
{
    ErlNifBinary bytes;
    ERL_NIF_TERM term;
    if (!enif_inspect_binary(env, argv[0], &bytes))
        return enif_make_badarg(env);
    return enif_binary_to_term(env, bytes.data, bytes.size, &term, ERL_NIF_BIN2TERM_SAFE) ? term : enif_make_int(env, 0);
}

NIF(printed_self)
{
    ErlNifPid pid;
    char text[50];
    enif_self(env, &pid);
    enif_snprintf(text, sizeof text, "%T", enif_make_pid(env, &pid));
    return enif_make_string(env, text, ERL_NIF_LATIN1);
}

NIF(keep)
{
    enif_clear_env(kept_env);
    kept = enif_make_copy(kept_env, argv[0]);
    return ATOM("ok");
}

NIF(kept_term) { return enif_make_copy(env, kept); }

NIF(keep_new)
{
    kept = enif_make_copy(kept_env, enif_make_ref(env));
    return enif_make_copy(env, kept);
}

NIF(forget)
{
    enif_clear_env(kept_env);
    return ATOM("ok");
}

NIF(object)
{
    struct watcher *watcher = enif_alloc_resource(watching, sizeof *watcher);
    memset(watcher, 0, sizeof *watcher);
    enif_get_int(env, argv[0], &watcher->number);
    ERL_NIF_TERM term = enif_make_resource(env, watcher);
    enif_release_resource(watcher);
    return term;
}

NIF(monitor)
{
    struct watcher *watcher;
    ErlNifPid pid;
    if (!enif_get_resource(env, argv[0], watching, (void **)&watcher))
        return enif_make_badarg(env);
    if (!enif_get_local_pid(env, argv[1], &pid))
        enif_set_pid_undefined(&pid);
    int result = enif_monitor_process(env, watcher, &pid, &watcher->monitor);
    ERL_NIF_TERM one = result ? ATOM("none") : enif_make_monitor_term(env, &watcher->monitor);
    ERL_NIF_TERM other = result ? one : enif_make_monitor_term(env, &watcher->monitor);
    if (enif_compare(one, other) || enif_compare_monitors(&watcher->monitor, &watcher->monitor))
        return ATOM("wrong");
    return enif_make_tuple2(env, enif_make_int(env, result), one);
}

NIF(demonitor)
{
    struct watcher *watcher;
    enif_get_resource(env, argv[0], watching, (void **)&watcher);
    return enif_make_int(env, enif_demonitor_process(env, watcher, &watcher->monitor));
}

NIF(monitor_plain)
{
    void *object = enif_alloc_resource(plain, 1);
    ErlNifPid pid;
    enif_self(env, &pid);
    int result = enif_monitor_process(env, object, &pid, NULL);
    enif_release_resource(object);
    return enif_make_int(env, result);
}

/* An object with a pipe. */
NIF(pipe_)
{
    struct watcher *watcher = enif_alloc_resource(watching, sizeof *watcher);
    memset(watcher, 0, sizeof *watcher);
    watcher->number = 100;
    ERL_NIF_TERM term = enif_make_resource(env, watcher);
    enif_release_resource(watcher);
    return pipe(watcher->ends) ? ATOM("no") : term;
}

static ERL_NIF_TERM selected(ErlNifEnv *env, int result)
{
    if (result < 0)
        return enif_make_tuple2(env, ATOM("failed"), enif_make_int(env, result & 0xFF));
    return enif_make_int(env, result);
}

/* Object, end (0, 1, or another descriptor), mode, receiver, reference. */
NIF(select_)
{
    struct watcher *watcher;
    ErlNifPid pid;
    int end, mode, named = enif_get_local_pid(env, argv[3], &pid);
    if (!enif_get_resource(env, argv[0], watching, (void **)&watcher) || !enif_get_int(env, argv[1], &end) ||
        !enif_get_int(env, argv[2], &mode))
        return enif_make_badarg(env);
    int fd = end == 0 || end == 1 ? watcher->ends[end] : end;
    return selected(env, enif_select(env, fd, mode, watcher, named ? &pid : NULL, argv[4]));
}

/* A message of its own, out of an env. */
NIF(select_message)
{
    struct watcher *watcher;
    enif_get_resource(env, argv[0], watching, (void **)&watcher);
    ErlNifEnv *own = enif_alloc_env();
    int result = enif_select_read(env, watcher->ends[0], watcher, &owner, enif_make_copy(own, argv[1]), own);
    enif_free_env(own);
    return selected(env, result);
}

NIF(write_end)
{
    struct watcher *watcher;
    enif_get_resource(env, argv[0], watching, (void **)&watcher);
    return enif_make_int(env, (int)write(watcher->ends[1], "x", 1));
}

NIF(read_end)
{
    struct watcher *watcher;
    char byte;
    enif_get_resource(env, argv[0], watching, (void **)&watcher);
    return enif_make_int(env, (int)read(watcher->ends[0], &byte, 1));
}

NIF(close_end)
{
    struct watcher *watcher;
    int end;
    enif_get_resource(env, argv[0], watching, (void **)&watcher);
    enif_get_int(env, argv[1], &end);
    return enif_make_int(env, close(watcher->ends[end]));
}

/* Selects a file, which is always ready. */
NIF(select_file)
{
    struct watcher *watcher;
    enif_get_resource(env, argv[0], watching, (void **)&watcher);
    FILE *file = tmpfile();
    int fd = dup(fileno(file));
    fclose(file);
    int result = enif_select(env, fd, ERL_NIF_SELECT_READ, watcher, &owner, ATOM("undefined"));
    enif_select(env, fd, ERL_NIF_SELECT_STOP, watcher, NULL, ATOM("undefined"));
    return selected(env, result);
}

static void unload(ErlNifEnv *env, void *priv_data)
{
    enif_fprintf(stdout, "%T %s\n", ATOM("unloaded"), (char *)priv_data);
}

static ErlNifFunc functions[] = {
    {"echo", 1, echo}, {"bind", 1, bind}, {"send", 3, send}, {"send_env", 2, send_env}, {"send_thread", 0, send_thread},
    {"port_command", 2, port_command}, {"refs", 1, refs}, {"unique", 1, unique}, {"alive", 1, alive},
    {"whereis", 1, whereis}, {"existing", 1, existing}, {"read_safe", 1, read_safe}, {"printed_self", 0, printed_self}, {"keep", 1, keep}, {"kept_term", 0, kept_term},
    {"keep_new", 0, keep_new}, {"forget", 0, forget}, {"object", 1, object}, {"monitor", 2, monitor},
    {"demonitor", 1, demonitor}, {"monitor_plain", 0, monitor_plain},
    {"pipe", 0, pipe_}, {"select", 5, select_}, {"select_message", 2, select_message}, {"write_end", 1, write_end},
    {"read_end", 1, read_end}, {"close_end", 2, close_end}, {"select_file", 1, select_file},
};

ERL_NIF_INIT(requests, functions, load, NULL, NULL, unload)
