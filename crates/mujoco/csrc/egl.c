// A headless OpenGL context by EGL. libEGL is opened at run time, so that everything but rendering works on machines
// without it, and with our own declarations, so that no EGL headers are needed to build.

#include "shim.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *EGLDisplay, *EGLConfig, *EGLContext, *EGLSurface, *EGLDeviceEXT;
typedef int32_t EGLint;
typedef unsigned int EGLBoolean, EGLenum;

enum {
  EGL_ALPHA_SIZE = 0x3021, EGL_BLUE_SIZE = 0x3022, EGL_GREEN_SIZE = 0x3023, EGL_RED_SIZE = 0x3024,
  EGL_SURFACE_TYPE = 0x3033, EGL_NONE = 0x3038, EGL_RENDERABLE_TYPE = 0x3040, EGL_EXTENSIONS = 0x3055,
  EGL_HEIGHT = 0x3056, EGL_WIDTH = 0x3057,
  EGL_PBUFFER_BIT = 0x0001, EGL_OPENGL_BIT = 0x0008, EGL_OPENGL_API = 0x30A2,
  EGL_PLATFORM_DEVICE_EXT = 0x313F, EGL_PLATFORM_SURFACELESS_MESA = 0x31DD,
};

// name, return type, arguments
#define EGL_FUNCTIONS(X)                                                                            \
  X(GetProcAddress, void*, (const char*))                                                           \
  X(GetError, EGLint, (void))                                                                       \
  X(Initialize, EGLBoolean, (EGLDisplay, EGLint*, EGLint*))                                         \
  X(QueryString, const char*, (EGLDisplay, EGLint))                                                 \
  X(BindAPI, EGLBoolean, (EGLenum))                                                                 \
  X(ChooseConfig, EGLBoolean, (EGLDisplay, const EGLint*, EGLConfig*, EGLint, EGLint*))             \
  X(CreateContext, EGLContext, (EGLDisplay, EGLConfig, EGLContext, const EGLint*))                  \
  X(DestroyContext, EGLBoolean, (EGLDisplay, EGLContext))                                           \
  X(CreatePbufferSurface, EGLSurface, (EGLDisplay, EGLConfig, const EGLint*))                       \
  X(DestroySurface, EGLBoolean, (EGLDisplay, EGLSurface))                                           \
  X(GetCurrentContext, EGLContext, (void))                                                          \
  X(MakeCurrent, EGLBoolean, (EGLDisplay, EGLSurface, EGLSurface, EGLContext))

static struct {
#define X(name, result, arguments) result(*name) arguments;
  EGL_FUNCTIONS(X)
#undef X
  EGLDisplay (*GetPlatformDisplayEXT)(EGLenum, void*, const EGLint*);
  EGLBoolean (*QueryDevicesEXT)(EGLint, EGLDeviceEXT*, EGLint*);
} egl;

// One display for the whole process, opened once and never closed: closing it would pull it from under other threads.
static pthread_once_t once = PTHREAD_ONCE_INIT;
static EGLDisplay display;
static EGLConfig config;
static int surfaceless;  // contexts can be current without any surface
static char open_error[512];

struct em_gl {
  EGLContext context;
  EGLSurface surface;  // NULL when surfaceless
};

static int use_display(EGLDisplay candidate) {
  static const EGLint attributes[] = {EGL_RED_SIZE, 8, EGL_GREEN_SIZE, 8, EGL_BLUE_SIZE, 8, EGL_SURFACE_TYPE,
                                      EGL_PBUFFER_BIT, EGL_RENDERABLE_TYPE, EGL_OPENGL_BIT, EGL_NONE};
  EGLint major, minor, count = 0;
  if (!candidate || !egl.Initialize(candidate, &major, &minor)) return 0;
  if (!egl.ChooseConfig(candidate, attributes, &config, 1, &count) || count < 1) return 0;
  const char* extensions = egl.QueryString(candidate, EGL_EXTENSIONS);
  surfaceless = extensions && strstr(extensions, "EGL_KHR_surfaceless_context") != NULL;
  display = candidate;
  return 1;
}

static int use_device(int wanted) {  // -1: the first that works
  EGLDeviceEXT devices[32];
  EGLint count = 0;
  if (!egl.QueryDevicesEXT || !egl.QueryDevicesEXT(32, devices, &count)) return 0;
  for (EGLint i = 0; i < count; i++) {
    if (wanted >= 0 && i != wanted) continue;
    if (use_display(egl.GetPlatformDisplayEXT(EGL_PLATFORM_DEVICE_EXT, devices[i], NULL))) return 1;
  }
  return 0;
}

static void open_display(void) {
  // MuJoCo finds eglGetProcAddress among the global symbols, hence RTLD_GLOBAL.
  void* library = dlopen("libEGL.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    const char* why = dlerror();
    snprintf(open_error, sizeof open_error, "libEGL.so.1 cannot be opened (%s)", why ? why : "unknown reason");
    return;
  }
#define X(name, result, arguments)                                                                   \
  if (!(egl.name = (result(*) arguments)dlsym(library, "egl" #name))) {                              \
    snprintf(open_error, sizeof open_error, "libEGL.so.1 is too old: it has no egl" #name);          \
    return;                                                                                          \
  }
  EGL_FUNCTIONS(X)
#undef X
  *(void**)&egl.GetPlatformDisplayEXT = egl.GetProcAddress("eglGetPlatformDisplayEXT");
  *(void**)&egl.QueryDevicesEXT = egl.GetProcAddress("eglQueryDevicesEXT");
  if (!egl.GetPlatformDisplayEXT) {
    snprintf(open_error, sizeof open_error, "libEGL.so.1 has no eglGetPlatformDisplayEXT");
    return;
  }
  // The same variable as in MuJoCo's Python bindings picks a card by its number.
  const char* device = getenv("MUJOCO_EGL_DEVICE_ID");
  if (device && *device) {
    if (!use_device(atoi(device)))
      snprintf(open_error, sizeof open_error, "EGL device %d (MUJOCO_EGL_DEVICE_ID) does not exist or has no OpenGL",
               atoi(device));
    return;
  }
  if (use_display(egl.GetPlatformDisplayEXT(EGL_PLATFORM_SURFACELESS_MESA, NULL, NULL))) return;
  if (use_device(-1)) return;
  snprintf(open_error, sizeof open_error, "EGL is installed, but neither Mesa's surfaceless platform nor any device gives OpenGL");
}

em_gl* em_gl_new(char* why, int why_len) {
  pthread_once(&once, open_display);
  if (!display) {
    snprintf(why, why_len, "%s", open_error);
    return NULL;
  }
  em_gl* gl = calloc(1, sizeof *gl);
  if (!gl) {
    snprintf(why, why_len, "out of memory");
    return NULL;
  }
  egl.BindAPI(EGL_OPENGL_API);  // per thread
  gl->context = egl.CreateContext(display, config, NULL, NULL);
  if (!gl->context) {
    snprintf(why, why_len, "eglCreateContext failed with EGL error 0x%04x", egl.GetError());
    em_gl_free(gl);
    return NULL;
  }
  if (!surfaceless) {
    static const EGLint attributes[] = {EGL_WIDTH, 1, EGL_HEIGHT, 1, EGL_NONE};
    gl->surface = egl.CreatePbufferSurface(display, config, attributes);
  }
  if (em_gl_make_current(gl, why, why_len)) {
    em_gl_free(gl);
    return NULL;
  }
  return gl;
}

int em_gl_make_current(em_gl* gl, char* why, int why_len) {
  if (egl.GetCurrentContext() == gl->context) return 0;
  egl.BindAPI(EGL_OPENGL_API);
  if (egl.MakeCurrent(display, gl->surface, gl->surface, gl->context)) return 0;
  snprintf(why, why_len, "eglMakeCurrent failed with EGL error 0x%04x", egl.GetError());
  return 1;
}

void em_gl_free(em_gl* gl) {
  if (gl->context) {
    if (egl.GetCurrentContext() == gl->context) egl.MakeCurrent(display, NULL, NULL, NULL);
    egl.DestroyContext(display, gl->context);
  }
  if (gl->surface) egl.DestroySurface(display, gl->surface);
  free(gl);
}

const char* em_gl_driver(void) {
  enum { GL_RENDERER = 0x1F01 };
  const unsigned char* (*get_string)(unsigned int);
  *(void**)&get_string = egl.GetProcAddress("glGetString");
  const unsigned char* name = get_string ? get_string(GL_RENDERER) : NULL;
  return name ? (const char*)name : "";
}
