// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"cmp"
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

// EnvTemplate is the environment variable with which a developer says how the VMs of all suites start: a value of
// runtime.template. Without it each suite says so itself, to UseTemplates. Pods whose test brings a configuration file
// of its own do what that file says.
//
// The templates are in the directory of the shim's default configuration, so that all test programs of a run share
// them: one for each guest image and kind of VM. The directory is bounded, and the run's last command removes them:
// coco template rm --all.
const EnvTemplate = "COCO_TEST_TEMPLATE"

// EnvStandby is the environment variable with how many VMs wait for the pods of a suite; make standby sets it. Such VMs
// stay until coco standby rm.
const EnvStandby = "COCO_TEST_STANDBY"

// buildTimeout is for the boot of a template on a busy machine.
const buildTimeout = 3 * time.Minute

// mode is how VMs start: a suite that has not said so boots them.
func mode() string { return cmp.Or(os.Getenv(EnvTemplate), configs.TemplateOff) }

// TemplateKey is the line of a configuration's section runtime that says how the suite's VMs start.
func TemplateKey() string { return fmt.Sprintf("template = %q\n", mode()) }

// UseTemplates says how the VMs of this test program start, unless EnvTemplate does already: suite is a value of
// runtime.template. From templates, the one for pods of the default size is made first.
func UseTemplates(suite string) error {
	if os.Geteuid() != 0 { // nothing starts VMs
		return nil
	}
	if err := os.Setenv(EnvTemplate, cmp.Or(os.Getenv(EnvTemplate), suite)); err != nil || mode() == configs.TemplateOff {
		return err
	}
	dir, err := os.MkdirTemp("", "coco-test-")
	if err != nil {
		return err
	}
	config, err := WriteConfig(dir)
	if err == nil {
		err = build(config)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// WriteConfig writes the shim's configuration for the suite into a directory.
func WriteConfig(dir string) (path string, err error) {
	path = filepath.Join(dir, "coco.toml")
	text := "[runtime]\n" + TemplateKey()
	if n := os.Getenv(EnvStandby); n != "" {
		text += "standby = " + n + "\n"
	}
	return path, os.WriteFile(path, []byte(text), 0o644)
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
		return fmt.Errorf("coco template build: %w: %s", err, out)
	}
	return nil
}

// Template has the VMs of a configuration that a test makes by itself, with a state directory of its own, start as
// those of the suite do. The template that fits is made first. In the state directory a link to the shared templates
// stays, named "templates".
func Template(ctx context.Context, c *configs.Config) error {
	if c.Hypervisor.Type != configs.TypeQEMU {
		return nil
	}
	c.Runtime.Template = mode()
	if c.Runtime.HostPath == configs.HostPathLive {
		c.Runtime.Template = configs.TemplateOff // such VMs boot
	}
	if c.Runtime.Template == configs.TemplateOff {
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
		return fmt.Errorf("make a template for the test: %w", err)
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
