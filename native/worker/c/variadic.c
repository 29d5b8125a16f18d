/*
 * The functions of the NIF API that stable Rust cannot define: variadic ones, those that take a va_list, and the one
 * that ends its own thread (which unwinds, and must meet no frame of Rust's).
 */

#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t term;
typedef struct env env;

/* Rust's part; it does not write to the arrays. */
extern term enif_make_tuple_from_array(env *, term *, unsigned);
extern term enif_make_list_from_array(env *, term *, unsigned);
extern char *snakepit_term_text(term);
extern void *(*snakepit_thread_body(void *, void **))(void *);

/* Up to here elements are collected on the stack. */
#define FEW 32

typedef term (*from_array)(env *, term *, unsigned);

static term collect(from_array make, env *e, unsigned count, va_list elements)
{
    term few[FEW];
    term *array = count <= FEW ? few : malloc(count * sizeof(term));
    if (!array)
        abort();
    for (unsigned i = 0; i < count; i++)
        array[i] = va_arg(elements, term);
    term made = make(e, array, count);
    if (array != few)
        free(array);
    return made;
}

term enif_make_tuple(env *e, unsigned count, ...)
{
    va_list elements;
    va_start(elements, count);
    term made = collect(enif_make_tuple_from_array, e, count, elements);
    va_end(elements);
    return made;
}

term enif_make_list(env *e, unsigned count, ...)
{
    va_list elements;
    va_start(elements, count);
    term made = collect(enif_make_list_from_array, e, count, elements);
    va_end(elements);
    return made;
}

/* A text that grows. */
struct text {
    char *bytes;
    size_t length, room;
};

static void append(struct text *text, const char *bytes, size_t length)
{
    if (text->length + length + 1 > text->room) {
        text->room = 2 * (text->length + length + 1);
        text->bytes = realloc(text->bytes, text->room);
        if (!text->bytes)
            abort();
    }
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
    text->bytes[text->length] = 0;
}

/* One conversion, written by the C library itself: `spec` is the directive, with at most two stars resolved. */
#define WRITE(text, spec, value)                                                                                       \
    do {                                                                                                               \
        __typeof__(value) one = (value);                                                                               \
        int need = snprintf(NULL, 0, spec, one);                                                                       \
        if (need >= 0) {                                                                                               \
            char *piece = malloc((size_t)need + 1);                                                                    \
            if (!piece)                                                                                                \
                abort();                                                                                               \
            snprintf(piece, (size_t)need + 1, spec, one);                                                              \
            append(text, piece, (size_t)need);                                                                         \
            free(piece);                                                                                               \
        }                                                                                                              \
    } while (0)

enum size { CHAR, SHORT, INT, LONG, LONG_LONG, SIZE, PTRDIFF, INTMAX, LONG_DOUBLE };

/* The directive at `*format` (behind the percent sign). */
static void directive(struct text *text, const char **format, va_list *arguments)
{
    char spec[64] = "%";
    size_t used = 1;
    const char *at = *format;
    enum size size = INT;

    for (; *at && strchr("-+ #0123456789.*", *at); at++) {
        if (used > sizeof spec - 32)
            break;
        if (*at == '*')
            used += (size_t)snprintf(spec + used, 24, "%d", va_arg(*arguments, int));
        else
            spec[used++] = *at;
    }
    for (; *at && strchr("hlLqjzt", *at); at++) {
        switch (*at) {
        case 'h': size = size == SHORT ? CHAR : SHORT; break;
        case 'l': size = size == LONG ? LONG_LONG : LONG; break;
        case 'q': size = LONG_LONG; break;
        case 'L': size = LONG_DOUBLE; break;
        case 'j': size = INTMAX; break;
        case 'z': size = SIZE; break;
        case 't': size = PTRDIFF; break;
        }
        if (used < sizeof spec - 3)
            spec[used++] = *at;
    }
    if (*at)
        *format = at + 1;
    else
        *format = at;
    spec[used] = *at == 'T' ? 's' : *at;
    spec[used + 1] = 0;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
    switch (*at) {
    case '%':
        append(text, "%", 1);
        break;
    case 'T': {
        char *printed = snakepit_term_text(va_arg(*arguments, term));
        if (printed)
            WRITE(text, spec, printed);
        free(printed);
        break;
    }
    case 's':
        WRITE(text, spec, va_arg(*arguments, char *));
        break;
    case 'p':
        WRITE(text, spec, va_arg(*arguments, void *));
        break;
    case 'c':
        WRITE(text, spec, va_arg(*arguments, int));
        break;
    case 'd': case 'i': case 'o': case 'u': case 'x': case 'X':
        switch (size) {
        case LONG: WRITE(text, spec, va_arg(*arguments, long)); break;
        case LONG_LONG: case LONG_DOUBLE: WRITE(text, spec, va_arg(*arguments, long long)); break;
        case SIZE: WRITE(text, spec, va_arg(*arguments, size_t)); break;
        case PTRDIFF: WRITE(text, spec, va_arg(*arguments, ptrdiff_t)); break;
        case INTMAX: WRITE(text, spec, va_arg(*arguments, intmax_t)); break;
        default: WRITE(text, spec, va_arg(*arguments, int)); break;
        }
        break;
    case 'a': case 'A': case 'e': case 'E': case 'f': case 'F': case 'g': case 'G':
        if (size == LONG_DOUBLE)
            WRITE(text, spec, va_arg(*arguments, long double));
        else
            WRITE(text, spec, va_arg(*arguments, double));
        break;
    case 'n':
        *va_arg(*arguments, int *) = (int)text->length;
        break;
    default:
        /* Unknown: as it stands. */
        append(text, spec, used + (*at != 0));
    }
#pragma GCC diagnostic pop
}

static struct text printed(const char *format, va_list given)
{
    struct text text = { NULL, 0, 0 };
    va_list arguments;
    va_copy(arguments, given);
    append(&text, "", 0);
    while (*format) {
        size_t plain = strcspn(format, "%");
        append(&text, format, plain);
        format += plain;
        if (*format == '%') {
            format++;
            directive(&text, &format, &arguments);
        }
    }
    va_end(arguments);
    return text;
}

int enif_vfprintf(FILE *file, const char *format, va_list arguments)
{
    struct text text = printed(format, arguments);
    size_t written = fwrite(text.bytes, 1, text.length, file);
    free(text.bytes);
    return written == text.length ? (int)written : -1;
}

int enif_vsnprintf(char *buffer, size_t size, const char *format, va_list arguments)
{
    struct text text = printed(format, arguments);
    if (size > 0) {
        size_t fits = text.length < size ? text.length : size - 1;
        memcpy(buffer, text.bytes, fits);
        buffer[fits] = 0;
    }
    free(text.bytes);
    return (int)text.length;
}

int enif_fprintf(FILE *file, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int written = enif_vfprintf(file, format, arguments);
    va_end(arguments);
    return written;
}

int enif_snprintf(char *buffer, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int needed = enif_vsnprintf(buffer, size, format, arguments);
    va_end(arguments);
    return needed;
}

/* Rust's part. */
extern int snakepit_set_option(env *, int, void (*)(void *));

int enif_set_option(env *e, int option, ...)
{
    /* The first has no argument of its own. */
    if (option == 1)
        return snakepit_set_option(e, option, NULL);
    va_list arguments;
    va_start(arguments, option);
    void (*callback)(void *) = va_arg(arguments, void (*)(void *));
    va_end(arguments);
    return snakepit_set_option(e, option, callback);
}

void *snakepit_thread_start(void *thread)
{
    void *argument;
    void *(*body)(void *) = snakepit_thread_body(thread, &argument);
    return body(argument);
}

void enif_thread_exit(void *result)
{
    pthread_exit(result);
}
