// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"slices"
	"strconv"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/policy"
)

// process compares a container's first process.
func (d *Diffs) process(want *policy.Process, got *pb.Process) {
	const at, fix = "OCI.Process", "process"
	d.List(at+".Args", fix+".args", want.Args, got.GetArgs())
	Same(d, at+".Terminal", fix+".tty", want.TTY, got.GetTerminal())
	d.setting(at, want, got)
	d.env(at+".Env", want.Env, got.GetEnv())
}

// setting compares what a container's first process and its execs have in common.
func (d *Diffs) setting(at string, want *policy.Process, got *pb.Process) {
	const fix = "process"
	Same(d, at+".Cwd", fix+".cwd", want.Cwd, got.GetCwd())
	u := got.GetUser()
	Same(d, at+".User.UID", fix+".user.uid", want.User.UID, u.GetUID())
	Same(d, at+".User.GID", fix+".user.gid", want.User.GID, u.GetGID())
	d.Set(at+".User.AdditionalGids", fix+".user.groups", numbers(want.User.Groups), numbers(u.GetAdditionalGids()))
	Fixed(d, at+".User.Username", "", u.GetUsername())
	c := got.GetCapabilities()
	for _, s := range []struct {
		name      string
		want, got []string
	}{
		{"Bounding", want.Caps.Bounding, c.GetBounding()},
		{"Effective", want.Caps.Effective, c.GetEffective()},
		{"Inheritable", want.Caps.Inheritable, c.GetInheritable()},
		{"Permitted", want.Caps.Permitted, c.GetPermitted()},
		{"Ambient", want.Caps.Ambient, c.GetAmbient()},
	} {
		d.Set(at+".Capabilities."+s.name, fix+".caps."+strings.ToLower(s.name), s.want, s.got)
	}
	Same(d, at+".NoNewPrivileges", fix+".noNewPrivileges", want.NoNewPrivileges, got.GetNoNewPrivileges())
	Fixed(d, at+".ApparmorProfile", "", got.GetApparmorProfile())
	Fixed(d, at+".SelinuxLabel", "", got.GetSelinuxLabel())
	d.rlimits(at+".Rlimits", fix+".rlimits", want.Rlimits, got.GetRlimits())
}

func numbers(list []uint32) []string {
	out := make([]string, 0, len(list))
	for _, n := range list {
		out = append(out, strconv.FormatUint(uint64(n), 10))
	}
	return out
}

func (d *Diffs) rlimits(field, fix string, want policy.Rlimits, got []*pb.POSIXRlimit) {
	seen := map[string]bool{}
	for _, l := range got {
		i := slices.IndexFunc(want.Limits, func(w policy.Rlimit) bool { return w.Type == l.GetType() })
		text := Show(policy.Rlimit{Type: l.GetType(), Soft: l.GetSoft(), Hard: l.GetHard()})
		switch {
		case seen[l.GetType()]:
			d.Add(field, Quote(l.GetType())+" once", "it twice", "")
		case i >= 0 && (want.Limits[i].Soft != l.GetSoft() || want.Limits[i].Hard != l.GetHard()):
			d.Add(Key(field, l.GetType()), Show(want.Limits[i]), text, fix+".limits with "+text)
		case i < 0 && !want.FromHost:
			d.Add(Key(field, l.GetType()), "none", text, fix+".limits with "+text)
		case i < 0 && !isRlimit(l.GetType()):
			d.Add(Key(field, l.GetType()), "the name of a limit", Quote(l.GetType()), "")
		}
		seen[l.GetType()] = true
	}
	for _, w := range want.Limits {
		if !seen[w.Type] {
			d.Add(Key(field, w.Type), Show(w), "none", fix+".limits without "+Quote(w.Type))
		}
	}
}

func isRlimit(s string) bool {
	name, ok := strings.CutPrefix(s, "RLIMIT_")
	return ok && name != "" && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// env compares an environment. Variables of services that no entry names are noted to be dropped.
func (d *Diffs) env(field string, want []policy.Env, got []string) {
	const fix = "process.env"
	seen := make(map[string]bool, len(got))
	at := make(map[string]int, len(want))
	for i := range want {
		at[want[i].Name] = i + 1
	}
	for i, e := range got {
		name, value, ok := strings.Cut(e, "=")
		j := at[name] - 1
		wrong := !ok || name == "" || seen[name] || j >= 0 && !d.Allows(want[j].Value, value) || j < 0 && !IsService(name)
		switch {
		case wrong && d.more():
		case !ok || name == "":
			d.Add(Index(field, i), "NAME=VALUE", hidden(e), "")
		case seen[name]:
			d.Add(Key(field, name), "it once", "it twice", "")
		case j >= 0 && !d.Allows(want[j].Value, value):
			d.Add(Key(field, name), d.Wanted(want[j].Value), hidden(value), Key(fix, name)+" with this text")
		case j >= 0 && isStray(want[j].Value, value):
			d.Add(Key(field, name), "no sealed text: the policy does not say which resource it may open", hidden(value),
				"secrets with a sealed entry for "+Quote(name))
		case j < 0 && IsService(name):
			d.Drop[name] = true
		case j < 0:
			d.Add(Key(field, name), "none", "a text of "+strconv.Itoa(len(value))+" bytes",
				fix+" with an entry for "+Quote(name))
		}
		seen[name] = true
	}
	for _, w := range want {
		if !w.Optional && !seen[w.Name] && !d.more() {
			d.Add(Key(field, w.Name), d.Wanted(w.Value), "none", Key(fix, w.Name)+".optional = true")
		}
	}
}

// isStray says whether a text is a sealed one at a place where any text may be. Nothing would open it, so the process
// would take the text for the secret.
func isStray(v policy.Value, text string) bool {
	return v.Type == policy.TypeAny && policy.HasSyntax(policy.TypeSealed, text)
}

// IsService says whether kubelet makes variables of this name for services: FOO_SERVICE_HOST, FOO_SERVICE_PORT,
// FOO_SERVICE_PORT_NAME, FOO_PORT, FOO_PORT_80_TCP, FOO_PORT_80_TCP_PROTO, …_PORT, …_ADDR.
func IsService(name string) bool {
	if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return false
	}
	for _, mark := range []string{"_SERVICE_HOST", "_PORT"} {
		if at := strings.LastIndex(name, mark); at > 0 && at+len(mark) == len(name) {
			return true
		}
	}
	if at := strings.LastIndex(name, "_SERVICE_PORT_"); at > 0 {
		return true
	}
	for at := strings.Index(name, "_PORT_"); at > 0; {
		rest := name[at+len("_PORT_"):]
		number, after, _ := strings.Cut(rest, "_")
		protocol, what, more := strings.Cut(after, "_")
		if policy.HasSyntax(policy.TypePort, number) && slices.Contains([]string{"TCP", "UDP", "SCTP"}, protocol) &&
			(!more || slices.Contains([]string{"PROTO", "PORT", "ADDR"}, what)) {
			return true
		}
		next := strings.Index(name[at+1:], "_PORT_") // a service may be named like A_PORT: A_PORT_PORT_80_TCP
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return false
}

// Exec compares a further process of a container.
func (d *Diffs) Exec(c *policy.Container, got *pb.Process) {
	const at = "process"
	d.setting(at, &c.Process, got)
	env := c.Process.Env
	if got.GetTerminal() && !slices.ContainsFunc(env, func(e policy.Env) bool { return e.Name == "TERM" }) {
		term := "xterm" // which engines add
		env = append(slices.Clone(env), policy.Env{Name: "TERM", Value: policy.Value{Is: &term}, Optional: true})
	}
	own := false
	for _, s := range c.Secrets {
		i := slices.IndexFunc(env, func(e policy.Env) bool { return e.Name == s.Env })
		if !s.Sealed || i < 0 {
			continue
		}
		if !own {
			env, own = slices.Clone(env), true
		}
		env[i].Optional, d.Drop[s.Env] = true, true // engines repeat the text, which is opened for the first process alone
	}
	d.env(at+".Env", env, got.GetEnv())
}
