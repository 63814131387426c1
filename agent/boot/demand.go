// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/contract"
)

const maxAliases = 4096

// closing says how loading is closed for good, and whether it is.
type closing struct {
	lock func() error // sets kernel.modules_disabled, but for tests
	done atomic.Bool
}

func (c *closing) is() bool { return c != nil && c.done.Load() }

// CloseAfterBoot makes LoadRootfs load all that this guest may ever need, then close the loading of modules until the
// machine ends.
func (l *Loader) CloseAfterBoot() {
	l.closed = &closing{lock: func() error { return writeFile("/proc/sys/kernel/modules_disabled", "1") }}
}

// finish loads and closes. A module for a processor or device that is not there is no error.
func (l *Loader) finish() error {
	l.loadAll(func(m Module) bool { return m.Section == SectionLazy || m.Section == SectionReport })
	if err := l.closed.lock(); err != nil {
		return fmt.Errorf("close the loading of kernel modules: %w", err)
	}
	l.closed.done.Store(true)
	for _, m := range l.mods { // the files use memory in the initramfs
		_ = os.Remove(m.Path)
	}
	return nil
}

// LoadLazy loads what the agent may need later, but for one module.
func (l *Loader) LoadLazy(but string) {
	l.loadAll(func(m Module) bool { return m.Section == SectionLazy && m.Name != but })
}

// loadAll loads the wanted modules for what this guest may need. The absence of a module shows where it is needed.
func (l *Loader) loadAll(wanted func(Module) bool) {
	for _, m := range l.mods {
		if wanted(m) && !strings.Contains(m.Name, "vsock") {
			_ = l.withDeps(m, "", 0)
		}
	}
}

// loadNamed loads the modules that the kernel's command line names.
func (l *Loader) loadNamed() error {
	value, _ := findParam(l.cmdline, contract.ParamModules)
	var errs []error
	for name := range strings.SplitSeq(value, ",") {
		if name != "" {
			errs = append(errs, l.Load(name))
		}
	}
	return errors.Join(errs...)
}

// node is a device whose module is loaded when it is opened for the first time, and which has to be there for that.
type node struct {
	module, path string
	mode         uint32
	major, minor uint32
}

var nodes = []node{
	{"tun", "/dev/net/tun", unix.S_IFCHR | 0o666, 10, 200},
	{"loop", "/dev/loop-control", unix.S_IFCHR | 0o660, 10, 237},
	{"loop", "/dev/loop0", unix.S_IFBLK | 0o660, 7, 0},
	{"loop", "/dev/loop1", unix.S_IFBLK | 0o660, 7, 1},
	{"loop", "/dev/loop2", unix.S_IFBLK | 0o660, 7, 2},
	{"loop", "/dev/loop3", unix.S_IFBLK | 0o660, 7, 3},
}

// Open lets the kernel ask for modules of SectionDemand from now on, because a container has the rights to use them:
// the kernel runs this program as its modprobe, in which Modprobe answers. Until then, and where loading is
// closed, the kernel has no modprobe to run. names are modules to load at once, where the image has them: modules that
// programs load by running a modprobe of their own, which a container does not have.
func (l *Loader) Open(names ...string) error {
	if l.closed != nil {
		return nil
	}
	l.open.Do(func() {
		exe, err := os.Executable()
		if err == nil {
			err = writeFile("/proc/sys/kernel/modprobe", exe)
		}
		for _, n := range nodes {
			if err == nil && l.Has(n.module) {
				err = n.make()
			}
		}
		if err != nil {
			l.openErr = fmt.Errorf("let the kernel load modules on demand: %w", err)
		}
	})
	errs := []error{l.openErr}
	for _, name := range names {
		if err := l.Load(name); !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n node) make() error {
	if err := os.MkdirAll(filepath.Dir(n.path), 0o755); err != nil {
		return err
	}
	err := unix.Mknod(n.path, n.mode, int(unix.Mkdev(n.major, n.minor))) //nolint:gosec // as mknod(2) has it
	if errors.Is(err, unix.EEXIST) {                                     // the module is there already
		return nil
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", n.path, err)
	}
	return os.Chmod(n.path, os.FileMode(n.mode&0o777)) // independent of the umask
}

// Modprobe is this program as the kernel runs it: `PATH -q -- NAME`. It loads a module of SectionDemand of that name or
// alias, and no other.
func Modprobe(args []string) error {
	if len(args) == 0 {
		return errors.New("no module is named")
	}
	name := args[len(args)-1]
	l, err := LoaderFromFile(contract.ModulesFile)
	if err != nil {
		return err
	}
	f, err := os.Open(contract.AliasesFile)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := resolve(f, name)
	if err != nil {
		return err
	}
	return l.loadDemanded(names)
}

// loadDemanded loads those of the names that are modules for it; one is enough.
func (l *Loader) loadDemanded(names []string) error {
	found := false
	var errs []error
	for _, n := range names {
		if m, ok := l.find(n); ok && m.Section == SectionDemand {
			found = true
			errs = append(errs, l.withDeps(m, "", 0))
		}
	}
	if !found {
		return errors.New("no such module is loaded on demand")
	}
	return errors.Join(errs...)
}

// resolve returns the modules that a name may stand for: itself, and those that have an alias that matches.
func resolve(r io.Reader, name string) ([]string, error) {
	out := []string{name}
	sc := bufio.NewScanner(r)
	for n := 0; sc.Scan(); n++ {
		if n == maxAliases {
			return nil, fmt.Errorf("more than %d aliases of kernel modules", maxAliases)
		}
		pattern, module, _ := strings.Cut(sc.Text(), " ")
		if ok, _ := path.Match(pattern, name); ok || pattern == name {
			out = append(out, module)
		}
	}
	return out, sc.Err()
}
