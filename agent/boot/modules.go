// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bufio"
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

	"github.com/coco-shim/coco/api/contract"
)

// Section says when a module is loaded.
type Section int

// Sections of the modules file.
const (
	SectionBoot   Section = iota // before the channel to the host opens
	SectionRootfs                // right after, while the agent already serves
	SectionLazy                  // when the agent needs it
	SectionReport                // in a TEE: access to its reports
	SectionDemand                // when a container that may do so uses it
)

var sectionNames = map[string]Section{
	contract.SectionBoot: SectionBoot, contract.SectionRootfs: SectionRootfs, contract.SectionLazy: SectionLazy,
	contract.SectionReport: SectionReport, contract.SectionDemand: SectionDemand,
}

// Module is one line of the modules file.
type Module struct {
	Name, Path string
	Section    Section
	Deps       []string // modules that are loaded before it
}

const maxModules = 1024

// ParseModules reads a modules file: `name path dependency,…` per line, under a section's name (`# boot`). Lines before
// the first section belong to boot; other comments are skipped.
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
		if len(f) < 2 || len(f) > 3 || !path.IsAbs(f[1]) || len(list) == maxModules {
			return nil, fmt.Errorf("modules file, line %d: want `name /path dependencies`, at most %d lines: %w",
				n, maxModules, errdefs.ErrInvalidArgument)
		}
		m := Module{Name: canonical(f[0]), Path: f[1], Section: section}
		if len(f) == 3 {
			m.Deps = strings.Split(canonical(f[2]), ",")
		}
		list = append(list, m)
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
	closed  *closing      // nil: loading stays possible; set before anything is loaded
	open    sync.Once     // lets the kernel ask for modules
	openErr error         // of open

	mu    sync.Mutex
	loads map[string]*load // guarded by mu; by module name
}

// load is one module's insertion.
type load struct {
	done chan struct{}
	err  error // valid once done is closed
}

// NewLoader makes a loader for the modules of an image. They get the parameters that the kernel's command line has for
// them.
func NewLoader(mods []Module) *Loader {
	return &Loader{
		insert: insertModule, cmdline: cmdline(), mods: mods, ready: make(chan struct{}),
		loads: map[string]*load{},
	}
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

// LoadBoot loads the boot section, except modules for which skip is true: to load the driver of an absent
// device costs time. It goes on after an error, since a missing device causes a clearer error at its use.
func (l *Loader) LoadBoot(skip func(name string) bool) error {
	var errs []error
	for _, m := range l.mods {
		if m.Section == SectionBoot && !skip(m.Name) {
			errs = append(errs, l.once(m, ""))
		}
	}
	return errors.Join(errs...)
}

// LoadRootfs loads the rootfs section and the modules that the command line names, and lets Wait return. Modules that
// do not depend on each other are loaded concurrently, since the kernel mostly waits meanwhile.
func (l *Loader) LoadRootfs() error {
	var wg sync.WaitGroup
	errs := make([]error, len(l.mods))
	for i, m := range l.mods {
		if m.Section == SectionRootfs {
			wg.Go(func() { errs[i] = l.withDeps(m, "", 0) })
		}
	}
	wg.Wait()
	l.err = errors.Join(append(errs, l.loadNamed())...)
	if l.closed != nil {
		l.err = errors.Join(l.err, l.finish())
	}
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

// Load loads a module of the image by name, after its dependencies.
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
	for _, d := range m.Deps {
		if dep, ok := l.find(d); ok { // others are built in
			if err := l.withDeps(dep, "", depth+1); err != nil {
				return err
			}
		}
	}
	return l.once(m, params)
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
	if l.closed.is() {
		e.err = fmt.Errorf("kernel module %s: loading is closed after the boot of a confidential guest; "+
			"%s=%s among the (measured) kernel parameters loads it before: %w", m.Name, contract.ParamModules, m.Name,
			errdefs.ErrFailedPrecondition)
		return e.err
	}
	// the kernel uses the last value: the measured one
	params = strings.TrimSpace(params + " " + moduleParams(l.cmdline, m.Name))
	if err := l.insert(m.Path, params); err != nil {
		e.err = fmt.Errorf("load kernel module %s (%s): %w", m.Name, m.Path, err)
	}
	return e.err
}

// moduleCompressed makes the kernel inflate a module (include/uapi/linux/module.h, MODULE_INIT_COMPRESSED_FILE).
const moduleCompressed = 4

func insertModule(file, params string) error {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) && loadedFrom(file) { // and its file freed
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if strings.HasSuffix(file, ".xz") {
		flags = moduleCompressed
	}
	err = unix.FinitModule(int(f.Fd()), params, flags)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	_ = os.Remove(file) // the initramfs is memory; a file that stays costs that and nothing else
	return nil
}

// loadedFrom says whether the kernel has the module of a file.
func loadedFrom(file string) bool {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	_, err := os.Lstat("/sys/module/" + canonical(name))
	return err == nil
}
