// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/show"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/filters"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func showCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Show a policy as a table that a person can check and sign",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := readPolicies(cmd, args[0])
			if err != nil {
				return fmt.Errorf("policy show: %w", err)
			}
			if asJSON {
				out := []*policy.Policy{}
				for _, n := range list {
					out = append(out, n.policy)
				}
				return show.JSON(cmd.OutOrStdout(), map[string]any{"policies": out})
			}
			for _, n := range list {
				if err := table(cmd.OutOrStdout(), n); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// table writes one policy.
func table(out io.Writer, n named) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	if n.name != "" {
		row("WORKLOAD", "%s", n.name)
	}
	p := n.policy
	row("POD", "")
	row("  host name", "%s", valueText(p.Pod.Hostname))
	row("  sysctls", "%s", settings(p.Pod.Sysctls))
	row("  dns", "%s", dnsText(p.Pod.DNS))
	row("  network", "%s", networkText(p.Pod.Network))
	row("  host may", "%s", words(map[string]bool{
		"copy anywhere": p.Pod.Copy, "add containers": p.Pod.Debug, "read statistics": p.Pod.Stats,
		"connect to ports " + portsText(p.Pod.PortForward): len(p.Pod.PortForward) > 0,
	}))
	for _, x := range p.Pod.Sealed.Signers {
		row("  sealed texts of", "%s", x.Kid)
	}
	if p.Pod.Sealed.InsecureUnsigned {
		row("  sealed texts of", "anybody (insecureUnsigned)")
	}
	if p.Pod.WorkloadPort != 0 {
		row("  workload API", "port %d", p.Pod.WorkloadPort)
	}
	for _, v := range p.Volumes {
		row("VOLUME "+v.Name, "%s", volumeText(v))
	}
	for _, c := range p.Containers {
		containerRows(row, c)
	}
	return w.Flush()
}

func containerRows(row func(string, string, ...any), c policy.Container) {
	row("CONTAINER "+c.Name, "%s, restarted %s", c.Kind, c.Restart)
	row("  image", "%s", c.Image.Manifest)
	if c.Image.SignedBy != "" {
		least := "of any version"
		if c.Image.MinVersion != "" {
			least = "from version " + c.Image.MinVersion
		}
		row("    or", "%s:%s %s, signed by %s; the layers are then those of that image", c.Image.Pull, c.Image.Tag, least,
			c.Image.SignedBy)
	}
	for i, l := range c.Image.Layers {
		row(fmt.Sprintf("    layer %d", len(c.Image.Layers)-i), "%s", l)
	}
	pr := c.Process
	row("  command", "%s", quoted(pr.Args))
	row("  directory", "%s", pr.Cwd)
	row("  user", "%d:%d %v", pr.User.UID, pr.User.GID, pr.User.Groups)
	row("  capabilities", "%s", none(strings.Join(pr.Caps.Effective, " ")))
	row("  privileges", "%s", words(map[string]bool{
		"no new privileges": pr.NoNewPrivileges, "read-only root": c.ReadonlyRfs, "terminal": pr.TTY,
		"sees processes of " + c.Linux.PIDs: c.Linux.PIDs != "",
	}))
	for i, digest := range c.Linux.Seccomp {
		title := "  seccomp"
		if i > 0 {
			title = "    or"
		}
		if releases := filters.Name(digest); releases != "" {
			digest += ", RuntimeDefault of containerd " + releases
		}
		row(title, "%s", digest)
	}
	for _, e := range pr.Env {
		row("  env "+e.Name, "%s%s", valueText(e.Value), optional(e.Optional))
	}
	for _, m := range c.Mounts {
		row("  mount "+m.Destination, "%s (%s)%s", sourceText(m), strings.Join(m.Options, ","), optional(m.Optional))
	}
	for _, d := range c.Disks {
		row("  disk "+d, "raw blocks of the host")
	}
	for _, x := range c.Secrets {
		row("  secret "+x.Resource, "%s", secretText(x))
	}
	may := map[string]bool{
		"run any command": c.Allow.Exec.Any, "read the output": c.Allow.Logs, "write to the input": c.Allow.Stdin,
	}
	for _, e := range c.Allow.Exec.Commands {
		may["run "+quoted(e.Args)] = true
	}
	row("  host may", "%s", words(may))
	workloadRows(row, c.Workload)
}

// workloadRows lists the requests that a container may send to the guest's workload API.
func workloadRows(row func(string, string, ...any), w policy.Workload) {
	if !w.Opens() {
		return
	}
	calls := strings.Join(w.Calls, " ")
	if w.Evidence == policy.EvidenceRaw {
		calls += ", evidence with ANY report data"
	}
	if w.ExportKey {
		calls += ", tokens WITH THE PRIVATE KEY"
	}
	row("  asks the guest for", "%s", none(calls))
	for _, r := range w.Resources {
		row("    secret", "%s", r)
	}
	for _, k := range w.Azure.Keys {
		row("    key of Azure", "https://%s/keys/%s, attested by %s", k.Vault, k.KID, k.MAA)
	}
	if len(w.Azure.Calls) > 0 {
		row("    of Azure", "%s, WITH KEYS OF ITS OWN %s", strings.Join(w.Azure.Calls, " "), strings.Join(w.Azure.MAA, " "))
	}
}

func secretText(s policy.Secret) string {
	switch {
	case s.Sealed && s.Env != "":
		return "opens the sealed text in variable " + s.Env
	case s.Sealed:
		return "opens the sealed text in file " + s.File
	case s.Env != "":
		return "variable " + s.Env
	}
	text := "file " + s.File + ", mode " + cmp.Or(s.Mode, policy.SecretMode)
	if every := s.RenewInterval(); every > 0 {
		text += ", renewed every " + every.String()
	} else if s.Renew != "" {
		text += ", renewed on request"
	}
	return text
}

func none(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func words(set map[string]bool) string {
	var out []string
	for _, w := range sorted(set) {
		if set[w] {
			out = append(out, w)
		}
	}
	return none(strings.Join(out, ", "))
}

func optional(b bool) string {
	if b {
		return ", or not there"
	}
	return ""
}

func quoted(args []string) string {
	var out []string
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n\"'$\\") {
			a = strconv.Quote(a)
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

func settings(m map[string]string) string {
	var out []string
	for _, k := range sorted(m) {
		out = append(out, k+"="+m[k])
	}
	return none(strings.Join(out, ", "))
}

func portsText(list []uint16) string {
	var out []string
	for _, p := range list {
		out = append(out, strconv.Itoa(int(p)))
	}
	return strings.Join(out, " ")
}

func valueText(v policy.Value) string {
	switch {
	case v.Is != nil:
		return strconv.Quote(*v.Is)
	case len(v.OneOf) > 0:
		return "one of " + quoted(v.OneOf)
	case v.Field != "":
		return "the pod's " + v.Field + ", as the host says"
	case v.Type == policy.TypeAny:
		return "ANY text"
	}
	return "any text of type " + v.Type
}

func dnsText(d policy.DNS) string {
	if d.FromHost {
		return "as the host says"
	}
	return none(strings.Join(d.Lines, "; "))
}

func networkText(n policy.Network) string {
	var out []string
	for _, i := range n.Interfaces {
		at := "addresses as the host says"
		if len(i.Addresses) > 0 {
			at = strings.Join(i.Addresses, " ")
		}
		out = append(out, i.Name+": "+at)
	}
	if n.Routes {
		out = append(out, "routes as the host says")
	}
	if n.Neighbours {
		out = append(out, "neighbours as the host says")
	}
	return none(strings.Join(out, ", "))
}

func volumeText(v policy.Volume) string {
	switch {
	case v.Content != nil:
		return "files of the host, " + contentText(*v.Content)
	case v.Kind == policy.VolumeMemory:
		return fmt.Sprintf("memory of the guest, mode %s, group %d", v.Mode, v.GID)
	case v.Kind == policy.VolumeDisk:
		return fmt.Sprintf("a new disk, encrypted by the guest, mode %s, group %d", v.Mode, v.GID)
	case v.Kind == policy.VolumeImage:
		return "an image with layers " + strings.Join(v.Layers, " ")
	}
	return v.Kind + " " + v.FSType
}

func contentText(c policy.Content) string {
	switch c.Rule {
	case policy.ContentDigest:
		var out []string
		for _, f := range c.Files {
			out = append(out, f.Path+" "+f.SHA256)
		}
		return "pinned: " + none(strings.Join(out, ", "))
	case policy.ContentSigned:
		return fmt.Sprintf("signed by one of %d keys, counter from %d", len(c.Keys), c.Counter)
	}
	return "NOT PINNED"
}

func sourceText(m policy.Mount) string {
	switch s := m.Source; {
	case s.Is != nil:
		return m.Type
	case s.Shm:
		return "the pod's shared memory"
	case s.Copy != nil:
		return "copy, " + contentText(*s.Copy)
	case s.Volume != nil && s.Volume.SubPath != "":
		return "volume " + s.Volume.Name + ", below " + s.Volume.SubPath
	case s.Volume != nil:
		return "volume " + s.Volume.Name
	}
	return "nothing"
}
