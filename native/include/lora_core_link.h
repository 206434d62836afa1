/* Links adapters into the templates of a lora-core bundle, on the device.
 *
 * The result has the bytes that `lora-core add` writes. Nothing is needed beside the template's two files
 * (`template/N.pte`, `template/N.json` of a bundle for XNNPACK; `template/model.pte`, `template/model.json` with one program
 * for all adapters) and the adapter; with one program also that, as it is.
 *
 * Functions return LORA_CORE_OK or what went wrong, and then say more in `error` (which may be NULL). No exception
 * leaves the library. A template may be used by several threads at a time. Paths are UTF-8.
 */
#ifndef LORA_CORE_LINK_H
#define LORA_CORE_LINK_H

#include <stddef.h>

#if defined(__GNUC__)
#define LORA_CORE_API __attribute__((visibility("default")))
#else
#define LORA_CORE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lora_core_status {
  LORA_CORE_OK = 0,
  LORA_CORE_IO = 1,          /* a file cannot be read or written */
  LORA_CORE_DAMAGED = 2,     /* a file is cut short, changed, or not what it should be */
  LORA_CORE_NEWER = 3,       /* a file is of a newer version than this library reads */
  LORA_CORE_FOREIGN = 4,     /* the adapter was packed for another foundation or another template */
  LORA_CORE_MISFIT = 5,      /* the adapter has a layer, rank or size that the template has no room for */
  LORA_CORE_UNSUPPORTED = 6, /* the adapter uses something that this library does not do */
  LORA_CORE_MEMORY = 7       /* there is not enough memory */
} lora_core_status;

typedef struct lora_core_error {
  char message[512]; /* one sentence, always terminated */
} lora_core_error;

/* A template opened for linking: its files stay mapped until it is closed. */
typedef struct lora_core_template lora_core_template;

/* Opens a template: the program with placeholders, and its relocation table. Both are checked and hashed. */
LORA_CORE_API lora_core_status lora_core_template_open(const char *program, const char *table,
                                                       lora_core_template **opened, lora_core_error *error);
LORA_CORE_API void lora_core_template_close(lora_core_template *opened);

/* The fingerprint of the foundation that the template goes with: 64 hexadecimal digits. */
LORA_CORE_API const char *lora_core_template_foundation(const lora_core_template *opened);

/* Says whether the file at `path` is that foundation. Reads all of it. */
LORA_CORE_API lora_core_status lora_core_foundation_check(const lora_core_template *opened, const char *path,
                                                          lora_core_error *error);

/* Links a package (`lora-core pack`) as the adapter `name` (NULL: the name that it says), which the program carries, with
 * `strength` (1: as it was trained), and writes the program to `program` and the adapter's data to `data`. `data` NULL: the
 * data goes into the program (a bundle with `--adapter-data embedded`). Each file appears whole under its name or not at
 * all, the program last. */
LORA_CORE_API lora_core_status lora_core_link_package(const lora_core_template *opened, const char *package,
                                                      const char *name, double strength, const char *program,
                                                      const char *data, lora_core_error *error);

/* Links an adapter as PEFT saves it: `weights` (adapter_model.safetensors) and `config` (adapter_config.json). Nothing
 * says which base it belongs to; what does not fit by name and shape is refused. Patterns, DoRA, biases and everything
 * else that changes the mathematics beyond r, lora_alpha and use_rslora is refused by name: pack such an adapter. */
LORA_CORE_API lora_core_status lora_core_link_peft(const lora_core_template *opened, const char *weights,
                                                   const char *config, const char *name, double strength,
                                                   const char *program, const char *data, lora_core_error *error);

/* The same for a bundle with one program for all adapters (`--layout multimethod`): writes the program `current` with the
 * adapter added as the method `name` to `program`, which may be `current` itself. Of several slot plans the adapter gets
 * the one that `lora-core add` chooses. */
LORA_CORE_API lora_core_status lora_core_add_package(const lora_core_template *opened, const char *current,
                                                     const char *package, const char *name, double strength,
                                                     const char *program, lora_core_error *error);
LORA_CORE_API lora_core_status lora_core_add_peft(const lora_core_template *opened, const char *current,
                                                  const char *weights, const char *config, const char *name,
                                                  double strength, const char *program, lora_core_error *error);

/* Writes the program `current` without the method of adapter `name`, as `lora-core remove` does. */
LORA_CORE_API lora_core_status lora_core_remove_adapter(const lora_core_template *opened, const char *current,
                                                        const char *name, const char *program, lora_core_error *error);

/* Checks a package's digest and copies one of its fields (`name`, `digest`, `signature`, `signer`,
 * `prompting/template/default`, ...) into `buffer`, terminated. `*needed` (may be NULL) is its size with the terminator; 0
 * if the package does not have it, which is no error. A buffer that is too small stays empty. */
LORA_CORE_API lora_core_status lora_core_package_field(const char *package, const char *field, char *buffer,
                                                       size_t size, size_t *needed, lora_core_error *error);

#ifdef __cplusplus
}
#endif

#endif
