// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers/host"
)

// EnvTemplate is the environment variable that says whether the tests' VMs start from templates: a value of
// runtime.template. Without it they do as by default. Pods whose test brings a configuration file of its own do what
// that file says.
//
// The templates are in the directory of the shim's default configuration, so that all test programs of a run share
// them. It is bounded, and the run's last command removes them: coco template rm --all.
const EnvTemplate = "COCO_TEST_TEMPLATE"

// buildTimeout is for the boot of a template on a busy machine.
const buildTimeout = 3 * time.Minute

// TemplateKey is the line of a configuration's section runtime that follows EnvTemplate, or nothing.
func TemplateKey() string {
	if mode := os.Getenv(EnvTemplate); mode != "" {
		return fmt.Sprintf("template = %q\n", mode)
	}
	return ""
}

// UseTemplates makes daemons that this process starts later follow EnvTemplate, by a configuration file for their
// shims. The template for pods of the default size is made first. done removes the file.
func UseTemplates() (done func() error, err error) {
	mode := os.Getenv(EnvTemplate)
	if mode == "" || os.Geteuid() != 0 {
		return func() error { return nil }, nil
	}
	f, err := os.CreateTemp("/run", "coco-test-*.toml")
	if err != nil {
		return nil, err
	}
	done = func() error { return os.Remove(f.Name()) }
	_, err = f.WriteString("[runtime]\n" + TemplateKey())
	err = errors.Join(err, f.Close(), os.Setenv(configs.EnvFile, f.Name()))
	if err == nil && mode != configs.TemplateOff {
		err = build(f.Name())
	}
	if err != nil {
		return nil, errors.Join(err, done())
	}
	return done, nil
}

// build makes the template for pods of the default size.
func build(config string) error {
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(Prefix(), "bin", "coco"), "template", "build", "--config", config)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrNotExist) {
		return nil // tests that need what `make stage` installs say so
	}
	if err != nil {
		return fmt.Errorf("%s: coco template build: %w: %s", EnvTemplate, err, out)
	}
	return nil
}

// Template has a configuration that a test makes by itself, with a state directory of its own, follow EnvTemplate. The
// template that fits is made first. In the state directory a link to the shared templates stays, named "templates".
func Template(ctx context.Context, c *configs.Config) error {
	mode := os.Getenv(EnvTemplate)
	if mode == "" || c.Hypervisor.Type != configs.Default().Hypervisor.Type || c.Runtime.HostPath == configs.HostPathLive {
		return nil
	}
	c.Runtime.Template = mode
	if mode == configs.TemplateOff {
		return nil
	}
	shared := *c
	shared.Runtime.StateDir = configs.Default().Runtime.StateDir
	if err := os.MkdirAll(shared.Runtime.StateDir, 0o700); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	if _, _, err := host.MakeTemplate(ctx, shared, "", nil); err != nil {
		return fmt.Errorf("%s: %w", EnvTemplate, err)
	}
	if err := os.MkdirAll(c.Runtime.StateDir, 0o700); err != nil {
		return err
	}
	return os.Symlink(host.Templates(shared).Dir, filepath.Join(c.Runtime.StateDir, "templates"))
}

// isMaker says whether a command line is that of a process which makes a template.
func isMaker(argv []string) bool {
	n := len(host.MakerArgs)
	return len(argv) > n && filepath.Base(argv[0]) == "coco" && slices.Equal(argv[1:1+n], host.MakerArgs)
}

// making reports whether a template is made at the moment: its VM, cgroup and network namespace are no leaks.
func making() bool {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if cmd, err := os.ReadFile(filepath.Join(d, "cmdline")); err == nil && isMaker(strings.Split(string(cmd), "\x00")) {
			return true
		}
	}
	return false
}
