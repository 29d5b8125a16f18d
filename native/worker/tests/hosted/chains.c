/* Objects whose end does something: takes a lock, ends others, stands still, monitors, unloads its library. */

#include <erl_nif.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NIF(name) static ERL_NIF_TERM name(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[])
#define ATOM(text) enif_make_atom(env, text)

enum kind { LOCKING, LINK, STANDING, MONITORING, COUNTED };

struct object {
    enum kind kind;
    int number;
    struct object *next;
    /* Where it stands; its own. */
    char *path;
    ErlNifPid pid;
};

static ErlNifResourceType *type;
static ErlNifMutex *lock;
static ErlNifTid thread;
static int has_thread;
static int counted;

static void say(const char *what, int number)
{
    printf("%s %d\n", what, number);
    fflush(stdout);
}

/* Until somebody opens the pipe for writing. */
static void stand(const char *path)
{
    close(open(path, O_RDONLY));
}

static void end(ErlNifEnv *env, struct object *object)
{
    switch (object->kind) {
    case LOCKING:
        enif_mutex_lock(lock);
        enif_mutex_unlock(lock);
        break;
    case LINK:
        if (object->next) {
            enif_release_resource(object->next);
            return;
        }
        break;
    case STANDING:
        say("standing", object->number);
        stand(object->path);
        break;
    case MONITORING:
        enif_monitor_process(env, object, &object->pid, NULL);
        stand(object->path);
        break;
    case COUNTED:
        if (++counted < object->number)
            return;
        break;
    }
    say("destroyed", object->number);
}

static void destroyed(ErlNifEnv *env, void *data)
{
    struct object *object = data;
    end(env, object);
    free(object->path);
}

static void down(ErlNifEnv *env, void *data, ErlNifPid *pid, ErlNifMonitor *monitor)
{
    (void)env, (void)pid, (void)monitor;
    say("down", ((struct object *)data)->number);
}

static struct object *make(enum kind kind, int number)
{
    struct object *object = enif_alloc_resource(type, sizeof *object);
    memset(object, 0, sizeof *object);
    object->kind = kind;
    object->number = number;
    return object;
}

static int path_of(ErlNifEnv *env, ERL_NIF_TERM term, char *path, size_t size)
{
    ErlNifBinary binary;
    if (!enif_inspect_binary(env, term, &binary) || binary.size >= size)
        return 0;
    memcpy(path, binary.data, binary.size);
    path[binary.size] = 0;
    return 1;
}

static int load(ErlNifEnv *env, void **priv_data, ERL_NIF_TERM info)
{
    char path[4096];
    ErlNifResourceTypeInit init = {destroyed, NULL, down};
    type = enif_open_resource_type_x(env, "object", &init, ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER, NULL);
    lock = enif_mutex_create("chains");
    *priv_data = NULL;
    if (path_of(env, info, path, sizeof path)) {
        say("loading", 0);
        stand(path);
    }
    return type == NULL;
}

static int upgrade(ErlNifEnv *env, void **priv_data, void **old, ERL_NIF_TERM info)
{
    (void)old;
    return load(env, priv_data, info);
}

static void unload(ErlNifEnv *env, void *priv_data)
{
    (void)env, (void)priv_data;
    enif_mutex_destroy(lock);
    say("unload", has_thread ? enif_thread_join(thread, NULL) : 0);
}

/* Lets go under the lock that the destructor takes. */
NIF(locked)
{
    struct object *object = make(LOCKING, 1);
    enif_mutex_lock(lock);
    enif_release_resource(object);
    enif_mutex_unlock(lock);
    return ATOM("ok");
}

/* The same, where an env of the library's own has the last reference. */
NIF(locked_env)
{
    struct object *object = make(LOCKING, 2);
    ErlNifEnv *own = enif_alloc_env();
    enif_make_resource(own, object);
    enif_release_resource(object);
    enif_mutex_lock(lock);
    enif_free_env(own);
    enif_mutex_unlock(lock);
    return ATOM("ok");
}

/* So many objects, each of which has the next one. */
NIF(chain)
{
    int count;
    struct object *first = NULL;
    enif_get_int(env, argv[0], &count);
    for (int number = count; number > 0; number--) {
        struct object *object = make(LINK, count);
        object->next = first;
        first = object;
    }
    enif_release_resource(first);
    return ATOM("ok");
}

static void *later(void *data)
{
    struct object *object = data;
    stand(object->path);
    enif_release_resource(object);
    return NULL;
}

/* A thread has an object, and lets go of it when the pipe is opened. */
NIF(in_thread)
{
    char path[4096];
    struct object *object = make(LOCKING, 3);
    if (!path_of(env, argv[0], path, sizeof path))
        return enif_make_badarg(env);
    object->path = strdup(path);
    has_thread = !enif_thread_create("later", &thread, later, object, NULL);
    return ATOM(has_thread ? "ok" : "no");
}

/* An object that the VM gets, and whose destructor stands still until the pipe is opened. */
NIF(standing)
{
    char path[4096];
    struct object *object = make(STANDING, 4);
    if (!path_of(env, argv[0], path, sizeof path))
        return enif_make_badarg(env);
    object->path = strdup(path);
    ERL_NIF_TERM term = enif_make_resource(env, object);
    enif_release_resource(object);
    return term;
}

/* Ends an object whose destructor monitors a process and then stands still. */
NIF(monitoring)
{
    char path[4096];
    struct object *object = make(MONITORING, 5);
    if (!enif_get_local_pid(env, argv[0], &object->pid) || !path_of(env, argv[1], path, sizeof path))
        return enif_make_badarg(env);
    object->path = strdup(path);
    enif_release_resource(object);
    return ATOM("ok");
}

/* A call that runs until the pipe is opened. */
NIF(call)
{
    char path[4096];
    if (!path_of(env, argv[0], path, sizeof path))
        return enif_make_badarg(env);
    stand(path);
    return ATOM("ok");
}

/* Makes an object and lets go of it. */
NIF(one)
{
    enif_release_resource(make(LOCKING, 6));
    return ATOM("ok");
}

/* Makes so many objects, each by itself, and lets go of them. */
NIF(many)
{
    int count;
    enif_get_int(env, argv[0], &count);
    for (int number = 0; number < count; number++)
        enif_release_resource(make(COUNTED, count));
    return ATOM("ok");
}

static ErlNifFunc functions[] = {
    {"locked", 0, locked},     {"locked_env", 0, locked_env}, {"chain", 1, chain}, {"in_thread", 1, in_thread},
    {"standing", 1, standing}, {"monitoring", 2, monitoring}, {"call", 1, call},   {"one", 0, one},
    {"many", 1, many},
};

ERL_NIF_INIT(snakepit_chains, functions, load, NULL, upgrade, unload)
