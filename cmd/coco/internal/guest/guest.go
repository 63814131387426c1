// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guest has the commands that build and inspect guest images.
package guest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/cmd/coco/internal/progress"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
	builder "github.com/coco-shim/coco/guest"
	"github.com/coco-shim/coco/guest/part"
)

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{Use: "guest", Short: "Build and inspect guest images"}
	cmd.AddCommand(buildCommand(), inspectCommand())
	return cmd
}

func buildCommand() *cobra.Command {
	var o builder.Options
	var compression string
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Make a kernel and an initramfs from distribution packages",
		Long: "Makes vmlinux, vmlinuz, initrd.img, parts and manifest.json from packages of a Debian suite, which are\n" +
			"fetched into a cache of their own; the host's packages, sources and apt settings are neither read\n" +
			"nor changed. The same packages (see --lock and --locked) and the same agent give the same bytes.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			steps := progress.New(cmd.ErrOrStderr())
			o.Progress, o.Compression = shown{steps}, builder.Compression(compression)
			m, err := builder.Build(cmd.Context(), o)
			steps.Wait()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: kernel %s, %s, %d files from %d packages\n",
				o.Out, m.Kernel.Release, m.Runtime, len(m.Files), len(m.Packages))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Suite, "suite", builder.DefaultSuite, "Debian suite")
	f.StringVar(&o.Version, "version", "",
		"state of the archive as snapshot.debian.org names it, such as 20260801T000000Z (default: the newest)")
	f.StringVar(&o.Mirror, "mirror", "", "another archive of the suite")
	f.StringVar(&o.SecurityMirror, "security-mirror", "", "with --mirror: the archive of its security updates")
	f.StringVar(&o.Kernel, "kernel", builder.DefaultKernel, "kernel package, or one that depends on it")
	f.StringVar(&o.Runtime, "runtime", builder.DefaultRuntime, "OCI runtime in the guest: crun or runc")
	f.StringVar(&o.Agent, "agent", besideMe("coco-agent"), "coco-agent binary, static")
	f.StringToStringVar(&o.Parts, "part", map[string]string{
		contract.PartTrust: besideMe("coco-trust"), contract.PartRego: besideMe("coco-rego"),
	},
		"NAME=PROGRAM: a static program that only some pods need, on a disk of its own (repeatable)")
	f.StringVar(&o.Out, "out", "dist/guest", "directory to write to")
	f.StringVar(&o.Cache, "cache", builder.DefaultCache, "directory that keeps fetched packages")
	f.StringVar(&o.Lock, "lock", "", "lock file: pins packages when it exists, is written when not")
	f.BoolVar(&o.Locked, "locked", false, "take exactly the packages that this release of coco was made with")
	f.BoolVar(&o.RenewLock, "renew-lock", false, "with --lock: take the newest packages and write the file anew")
	f.StringVar(&compression, "compression", string(builder.DefaultCompression),
		"initramfs compression: none, zstd or gzip")
	f.StringVar(&o.Cmdline, "cmdline", builder.DefaultCmdline, "default kernel command line, for the manifest")
	f.BoolVar(&o.Offline, "offline", false, "use only what the cache has")
	f.DurationVar(&o.MaxReleaseAge, "max-release-age", 0,
		"take an index of the archive up to this age, such as 720h (default: as long as it says it is valid)")
	return cmd
}

// besideMe is the path of another program in the directory of this one.
func besideMe(name string) string {
	exe, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(exe), name)
}

func inspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect [DIR|INITRD]",
		Short: "Show an image and compare it with its manifest",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "dist/guest"
			if len(args) == 1 {
				dir = args[0]
			}
			r, err := builder.Inspect(dir)
			if err != nil {
				return err
			}
			if asJSON {
				err = show.JSON(cmd.OutOrStdout(), r)
			} else {
				err = printReport(cmd.OutOrStdout(), r)
			}
			if err != nil {
				return err
			}
			return r.Err()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printReport(w io.Writer, r builder.Report) error {
	m := r.Manifest
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // errors surface in Flush
	line("image\t%s", r.Dir)
	line("kernel\t%s (%s %s, %s)", m.Kernel.Release, m.Kernel.Package, m.Kernel.Version, m.Suite)
	line("command line\t%s", m.Cmdline)
	line("runtime\t%s", m.Runtime)
	line("initramfs\t%d files, %d KiB unpacked, compression %s", len(m.Files), r.Unpacked>>10, m.Compression)
	for _, a := range m.Artifacts {
		line("%s\t%d bytes\tsha256:%s", a.Name, a.Size, a.SHA256)
	}
	for _, p := range r.Parts {
		line("%s\t%s\troot hash %s", p.Name, part.Program(p.Name), p.RootHash)
	}
	line("\nMODE\tSIZE\tSHA256\tPATH\tORIGIN")
	for _, f := range m.Files {
		name, sum := f.Path, "-"
		if f.Target != "" {
			name += " -> " + f.Target
		}
		if f.SHA256 != "" {
			sum = f.SHA256[:12]
		}
		line("%s\t%d\t%s\t%s\t%s", f.Mode, f.Size, sum, name, f.Origin)
	}
	if len(r.Problems) == 0 {
		line("\nEvery file is what the manifest says.")
	}
	return t.Flush()
}

// shown shows the builder's steps.
type shown struct{ progress.Shown }

// Step begins a step.
func (s shown) Step(title string, total int64) builder.Task { return s.Shown.Step(title, total) }
