// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package node has the commands that install coco on a host and take it away again.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/announce"
	"github.com/coco-shim/coco/cmd/coco/internal/nodetpm"
	"github.com/coco-shim/coco/cmd/coco/internal/pods"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/node"
	"github.com/coco-shim/coco/node/ctrd"
	"github.com/coco-shim/coco/node/engine"
	"github.com/coco-shim/coco/node/engines"
)

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use: "node", Short: "Install coco on this host for its container engines, or remove it",
		Long: "Each version of coco is a directory of its own below the prefix. The engines get the handlers coco,\n" +
			"coco-snp, coco-tdx, coco-clh and coco-clh-snp for the current version, and the same names with the hash of\n" +
			"a version behind them (coco-1a2b3c4d5e6f) for every version that is installed. All files change together\n" +
			"or not at all; an interrupted run is undone or finished by the next one.",
	}
	cmd.AddCommand(installCommand(), upgradeCommand(), statusCommand(), checkCommand(), gcCommand(), uninstallCommand(),
		pods.NodeMetricsCommand(), pods.NodeServeCommand(), announce.Command(), nodetpm.CACommand(), nodetpm.CertifyCommand())
	return cmd
}

// settings are the choices that a later run needs again; the record of the installation has them.
type settings struct {
	Engines   []string `json:"engines,omitempty"` // none: all that are found
	EnableCRI bool     `json:"enable_cri,omitempty"`
	Restart   []string `json:"restart_command,omitempty"`
	Config    string   `json:"containerd_config,omitempty"`
	Socket    string   `json:"containerd_socket,omitempty"`
}

const prefixFlag = "prefix"

func withPrefix(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String(prefixFlag, node.DefaultPrefix, "directory of all versions")
	return cmd
}

// host returns this host with the engines that the settings describe. change may override what the record has.
func host(cmd *cobra.Command, change func(*settings)) (*node.Node, settings, error) {
	prefix, err := cmd.Flags().GetString(prefixFlag)
	if err != nil {
		return nil, settings{}, err
	}
	if !filepath.IsAbs(prefix) || filepath.Clean(prefix) == "/" {
		return nil, settings{}, fmt.Errorf("--prefix %s is not an absolute path of a directory of coco's own", prefix)
	}
	n := node.New(filepath.Clean(prefix), cmd.ErrOrStderr())
	var s settings
	r, err := n.Installed()
	if err != nil {
		return nil, settings{}, err
	}
	if r != nil && len(r.Settings) > 0 {
		if err := json.Unmarshal(r.Settings, &s); err != nil {
			return nil, settings{}, fmt.Errorf("the settings of the installation in %s: %w", n.Prefix, err)
		}
	}
	if change != nil {
		change(&s)
	}
	return n, s, findEngines(cmd.Context(), n, s)
}

func findEngines(ctx context.Context, n *node.Node, s settings) error {
	plain := ctrd.Plain(n.Prefix)
	plain.CRI, plain.Restart = s.EnableCRI, s.Restart
	if s.Config != "" {
		plain.Root = s.Config
		plain.DropIn = filepath.Join(filepath.Dir(s.Config), "conf.d", "coco.toml")
	}
	if s.Socket != "" {
		plain.Socket = s.Socket
	}
	others := engines.Find("/", n.Prefix)
	if wanted(s, plain.Name) {
		// A distribution of Kubernetes brings its own: a containerd beside it that does not run is nobody's.
		e, err := ctrd.Find(ctx, plain)
		if err != nil {
			return err
		}
		if e != nil && (len(others) == 0 || len(s.Engines) > 0 || e.State(ctx).Running) {
			n.Engines = append(n.Engines, e)
		}
	}
	for _, e := range others {
		if wanted(s, e.Name()) {
			n.Engines = append(n.Engines, e)
		}
	}
	for _, name := range s.Engines {
		if !slices.ContainsFunc(n.Engines, func(e engine.Engine) bool { return e.Name() == name }) {
			return fmt.Errorf("there is no %s on this host; known engines are containerd, %s", name,
				strings.Join(engines.Names(), ", "))
		}
	}
	return nil
}

func wanted(s settings, name string) bool {
	return len(s.Engines) == 0 || slices.Contains(s.Engines, name)
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this command changes files of root: run it as root")
	}
	return nil
}

func installCommand() *cobra.Command {
	var o node.Options
	var s settings
	var restart string
	var aliases map[string]string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install this version of coco, and give the engines its handlers",
		Long: "Copies the programs and the guest image to a directory of their own, writes containerd's configuration\n" +
			"and restarts containerd, if something changed. Before the restart, containerd itself is asked what it makes\n" +
			"of the files: unless every other runtime, snapshotter and setting is as it was, all is undone and the\n" +
			"difference printed. A second run changes nothing and says nothing.",
		Example: "  sudo ./coco-1.0/bin/coco node install --dry-run   # what would change\n" +
			"  sudo ./coco-1.0/bin/coco node install",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			n, s, err := host(cmd, func(old *settings) { override(cmd, old, s, strings.Fields(restart)) })
			if err != nil {
				return err
			}
			if o.Settings, err = json.Marshal(s); err != nil {
				return err
			}
			if err := fromSource(cmd, &o); err != nil {
				return err
			}
			if cmd.Flags().Changed("alias") {
				o.Aliases = aliases
			}
			text, err := n.Install(cmd.Context(), o)
			if o.DryRun {
				fmt.Fprint(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Source, "from", "", "unpacked release (default: the one that this program is part of)")
	f.BoolVar(&o.DryRun, "dry-run", false, "print the differences and change nothing")
	f.IntVar(&o.Keep, "keep", 1, "older versions to keep besides those that pods use; -1: all")
	f.StringToStringVar(&aliases, "alias", nil, "further name of a handler, as in kata-qemu-snp=coco-snp")
	f.StringSliceVar(&s.Engines, "engine", nil,
		"engines that get the handlers: containerd, "+strings.Join(engines.Names(), ", ")+" (default: all that are found)")
	f.BoolVar(&s.EnableCRI, "enable-cri", false, "take the CRI plugin out of containerd's disabled_plugins")
	f.StringVar(&s.Config, "containerd-config", "",
		"containerd's configuration file (default: that of the running daemon)")
	f.StringVar(&s.Socket, "containerd-socket", "", "containerd's socket")
	f.StringVar(&restart, "restart-command", "",
		"command that restarts containerd (default: systemctl restart containerd)")
	return withPrefix(cmd)
}

// override puts the flags that were given over the settings of the installation that is there.
func override(cmd *cobra.Command, old *settings, s settings, restart []string) {
	given := cmd.Flags().Changed
	if given("engine") {
		old.Engines = s.Engines
	}
	if given("enable-cri") {
		old.EnableCRI = s.EnableCRI
	}
	if given("containerd-config") {
		old.Config = s.Config
	}
	if given("containerd-socket") {
		old.Socket = s.Socket
	}
	if given("restart-command") {
		old.Restart = restart
	}
}

// ownSource is the release that the running program is part of.
func ownSource() (string, error) {
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		return "", fmt.Errorf("find this program's release: %w", err)
	}
	return filepath.Dir(filepath.Dir(exe)), nil
}

// releaseOf asks the program of a release for its version.
func releaseOf(ctx context.Context, source string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(source, node.CLI), "version", "--json").Output()
	if err != nil {
		return "", fmt.Errorf("%s is no release of coco: %w; name one with --from", source, err)
	}
	var v struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(source, node.CLI), err)
	}
	return v.Version, nil
}

func uninstallCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove coco and its handlers; every file of others is as it was before",
		Long: "Takes what coco node install has written out of the engines' files, restarts the engines and removes all\n" +
			"versions. It refuses while pods run under coco, and lists them.",
		Example: "  sudo coco node uninstall --dry-run\n  sudo coco node uninstall",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			n, _, err := host(cmd, nil)
			if err != nil {
				return err
			}
			text, err := n.Uninstall(cmd.Context(), dryRun)
			if dryRun {
				fmt.Fprint(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the differences and change nothing")
	return withPrefix(cmd)
}

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell which version is installed, and which handlers the running engines have",
		Long: "Asks the running engines, not their files. The exit status is 0 when coco is installed and every engine\n" +
			"that runs has all its handlers.",
		Example: "  sudo coco node status\n  sudo coco node status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil { // sockets and /proc of others
				return err
			}
			n, _, err := host(cmd, nil)
			if err != nil {
				return err
			}
			s, err := n.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				err = show.JSON(cmd.OutOrStdout(), s)
			} else {
				printStatus(cmd, s)
			}
			return errors.Join(err, verdict(s))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return withPrefix(cmd)
}

func verdict(s node.Status) error {
	switch {
	case s.Interrupted:
		return errors.New("a run of coco node was interrupted; the next install or uninstall undoes or finishes it")
	case !s.Installed:
		return errNotInstalled(&node.Node{Prefix: s.Prefix})
	case len(s.Missing) > 0:
		return fmt.Errorf("not loaded: %s; run coco node install again", strings.Join(s.Missing, ", "))
	}
	return nil
}

func printStatus(cmd *cobra.Command, s node.Status) {
	out := cmd.OutOrStdout()
	if s.Installed {
		fmt.Fprintf(out, "coco %s, version %s, in %s\n", s.Release, s.Current, s.Prefix)
		for _, v := range s.Versions {
			if v != s.Current {
				fmt.Fprintf(out, "  also version %s\n", v)
			}
		}
	}
	for _, e := range s.Engines {
		state := "does not run"
		if e.Running {
			state = "runs, no handlers of coco"
		}
		if len(e.Handlers) > 0 {
			state = "runs, handlers " + strings.Join(e.Handlers, " ")
		}
		if e.Problem != "" {
			state += ": " + e.Problem
		}
		fmt.Fprintf(out, "%s (%s): %s\n", strings.TrimSpace(e.Engine+" "+e.Version), e.File, state)
	}
	for _, p := range s.Pods {
		fmt.Fprintf(out, "pod %s\n", p)
	}
}
