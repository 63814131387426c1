// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ModulesFile lists the kernel modules of the guest image, in load order.
const ModulesFile = "/etc/coco/modules"

// Section says when a module is loaded.
type Section int

// Sections of the modules file.
const (
	SectionBoot   Section = iota // before the channel to the host opens
	SectionRootfs                // right after, while the agent already serves
	SectionLazy                  // when something asks for it
)

var sectionNames = map[string]Section{"boot": SectionBoot, "rootfs": SectionRootfs, "lazy": SectionLazy}

// Module is one line of the modules file.
type Module struct {
	Name, Path string
	Section    Section
}

const maxModules = 1024

// ParseModules reads a modules file: `name path` per line, under `# boot`, `# rootfs` or `# lazy`.
// Lines before the first section belong to boot; other comments are skipped.
func ParseModules(r io.Reader) ([]Module, error) {
	var list []Module
	section := SectionBoot
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if c, ok := strings.CutPrefix(line, "#"); ok {
			if s, known := sectionNames[strings.TrimSpace(c)]; known {
				section = s
			}
			continue
		}
		if line == "" {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 2 || !path.IsAbs(f[1]) || len(list) == maxModules {
			return nil, fmt.Errorf("modules file, line %d: want `name /path`, at most %d lines: %w", n, maxModules, errdefs.ErrInvalidArgument)
		}
		list = append(list, Module{canonical(f[0]), f[1], section})
	}
	return list, sc.Err()
}

// canonical is the kernel's own spelling of a module name.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Loader loads modules once each.
type Loader struct {
	insert  func(path, params string) error
	cmdline string // the kernel's, which has parameters for modules
	mods    []Module
	ready   chan struct{} // closed when the rootfs section is loaded
	err     error         // of the rootfs section; valid once ready is closed

	mu    sync.Mutex
	loads map[string]*load // guarded by mu; by module name
}

// load is one module's insertion.
type load struct {
	done chan struct{}
	err  error // valid once done is closed
}

// NewLoader makes a loader for the modules of an image. They get the parameters that the kernel's command line has for them.
func NewLoader(mods []Module) *Loader {
	return &Loader{insert: insertModule, cmdline: cmdline(), mods: mods, ready: make(chan struct{}), loads: map[string]*load{}}
}

// LoaderFromFile reads the modules file. An image without one has everything built in.
func LoaderFromFile(name string) (*Loader, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return NewLoader(nil), nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mods, err := ParseModules(f)
	if err != nil {
		return nil, err
	}
	return NewLoader(mods), nil
}

// LoadBoot loads the boot section, but for modules that skip names: what serves a device that the
// machine has not is time lost. It goes on after a failure: a device that is missing shows itself
// where it is needed.
func (l *Loader) LoadBoot(skip func(name string) bool) error {
	var errs []error
	for _, m := range l.mods {
		if m.Section == SectionBoot && !skip(m.Name) {
			errs = append(errs, l.once(m, ""))
		}
	}
	return errors.Join(errs...)
}

// LoadRootfs loads the rootfs section and lets Wait return. Modules that do not depend on each other
// are loaded side by side: the kernel waits more than it works.
func (l *Loader) LoadRootfs() error {
	var wg sync.WaitGroup
	errs := make([]error, len(l.mods))
	for i, m := range l.mods {
		if m.Section == SectionRootfs {
			wg.Go(func() { errs[i] = l.withDeps(m, "", 0) })
		}
	}
	wg.Wait()
	l.err = errors.Join(errs...)
	close(l.ready)
	return l.err
}

// Wait blocks until the rootfs section is loaded.
func (l *Loader) Wait(ctx context.Context) error {
	select {
	case <-l.ready:
		return l.err
	case <-ctx.Done():
		return fmt.Errorf("wait for kernel modules: %w", ctx.Err())
	}
}

// Has tells whether the image carries a module of this name.
func (l *Loader) Has(name string) bool {
	_, ok := l.find(name)
	return ok
}

func (l *Loader) find(name string) (Module, bool) {
	name = canonical(name)
	for _, m := range l.mods {
		if m.Name == name {
			return m, true
		}
	}
	return Module{}, false
}

// Load loads a module of the image by name, after what it depends on.
func (l *Loader) Load(name string, params ...string) error {
	m, ok := l.find(name)
	if !ok {
		return fmt.Errorf("kernel module %s is not in the guest image: %w", name, errdefs.ErrNotFound)
	}
	return l.withDeps(m, strings.Join(params, " "), 0)
}

func (l *Loader) withDeps(m Module, params string, depth int) error {
	if depth > 16 {
		return fmt.Errorf("kernel module %s: dependencies nest too deep", m.Name)
	}
	deps, err := dependsOf(m.Path)
	if errors.Is(err, os.ErrNotExist) && l.begun(m.Name) { // loaded, and its file freed
		return l.once(m, params)
	}
	if err != nil {
		return fmt.Errorf("kernel module %s: %w", m.Name, err)
	}
	for _, d := range deps {
		if dep, ok := l.find(d); ok { // others are built in
			if err := l.withDeps(dep, "", depth+1); err != nil {
				return err
			}
		}
	}
	return l.once(m, params)
}

// dependsOf looks into a module file without copying it: the initramfs is memory already.
func dependsOf(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	deps := depends(b) // strings of its own
	return deps, unix.Munmap(b)
}

// depends reads the `depends=` entry of a module's .modinfo section: NUL-terminated key=value words.
func depends(b []byte) []string {
	const key = "\x00depends="
	i := bytes.Index(b, []byte(key))
	if i < 0 {
		return nil
	}
	rest := b[i+len(key):]
	end := bytes.IndexByte(rest, 0)
	if end <= 0 || end > 4096 {
		return nil
	}
	return strings.Split(string(rest[:end]), ",")
}

// begun tells whether somebody has loaded the module, or is about to.
func (l *Loader) begun(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.loads[name] != nil
}

// once loads a module; callers that come while another does so wait for its result.
func (l *Loader) once(m Module, params string) error {
	l.mu.Lock()
	e, ok := l.loads[m.Name]
	if !ok {
		e = &load{done: make(chan struct{})}
		l.loads[m.Name] = e
	}
	l.mu.Unlock()
	if ok {
		<-e.done
		return e.err
	}
	defer close(e.done)
	params = strings.TrimSpace(params + " " + moduleParams(l.cmdline, m.Name)) // the last one counts: what is measured
	if err := l.insert(m.Path, params); err != nil {
		e.err = fmt.Errorf("load kernel module %s (%s): %w", m.Name, m.Path, err)
	}
	return e.err
}

func insertModule(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), params, 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	_ = os.Remove(path) // the initramfs is memory; a file that stays costs that and nothing else
	return nil
}
