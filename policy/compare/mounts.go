// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"slices"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
)

// mounted is a mount of a request with its entry of the policy.
type mounted struct {
	entry *policy.Mount
	got   *pb.Mount
	at    string // "OCI.Mounts[3]"
}

// mounts compares the mounts of a specification, in their order, and pairs them with the policy's.
func (d *Diffs) mounts(want []policy.Mount, got []*pb.Mount) []mounted {
	var out []mounted
	const field = "OCI.Mounts"
	i, j := 0, 0
	for i < len(got) || j < len(want) {
		switch {
		case i < len(got) && j < len(want) && got[i].GetDestination() == want[j].Destination:
			at := Index(field, i)
			Same(d, at+".type", member(j)+".type", want[j].Type, got[i].GetType())
			if !d.Early || got[i].GetType() != "bind" { // a volume's kind adds ro
				d.List(at+".options", member(j)+".options", want[j].Options, got[i].GetOptions())
			}
			out = append(out, mounted{&want[j], got[i], at})
			i, j = i+1, j+1
		case j < len(want) && want[j].Optional:
			j++
		case i < len(got) && !slices.ContainsFunc(want[j:], func(m policy.Mount) bool {
			return m.Destination == got[i].GetDestination()
		}):
			d.Add(Index(field, i), "no mount on "+Quote(got[i].GetDestination()), "one", "mounts with an entry for it")
			i++
		default:
			d.Add(field, "a mount on "+Quote(want[j].Destination)+" at this place", "none", member(j)+".optional = true")
			j++
		}
	}
	return out
}

func member(i int) string { return Index("mounts", i) }

// sources compares where mounts come from, and returns the storages of the volumes among them.
func (d *Diffs) sources(p *policy.Policy, cid string, list []mounted, given []*pb.Storage) []Storage {
	var out []Storage
	for _, m := range list {
		field, source := m.at+".source", m.got.GetSource()
		switch s := m.entry.Source; {
		case s.Is != nil:
			Fixed(d, field, *s.Is, source)
		case d.Early:
		case s.Shm:
			Fixed(d, field, contract.ShmDir, source)
		case s.Copy != nil:
			Fixed(d, field, request.GuestCopy(cid, m.entry.Destination), source)
		case s.Volume != nil:
			out = append(out, d.use(p, cid, m, given)...)
		}
	}
	return unique(out)
}

// use compares a mount of a volume.
func (d *Diffs) use(p *policy.Policy, cid string, m mounted, given []*pb.Storage) []Storage {
	u := m.entry.Source.Volume
	i := slices.IndexFunc(p.Volumes, func(v policy.Volume) bool { return v.Name == u.Name })
	if i < 0 { // Validate has refused it
		d.Add(m.at+".source", "a volume of the policy", Quote(u.Name), "")
		return nil
	}
	v := &p.Volumes[i]
	if u.SubPath == "" {
		d.Bind(m.at+".source", v, m.got.GetSource())
		return volume(v, m.got.GetSource())
	}
	at := subPath(cid, m.entry.Destination)
	Fixed(d, m.at+".source", at, m.got.GetSource())
	j := slices.IndexFunc(given, func(s *pb.Storage) bool { return s.GetMountPoint() == at })
	if j < 0 {
		d.Add("storages", "a storage for "+Quote(at), "none", "")
		return nil
	}
	whole := given[j].GetSource()
	d.Bind(Index("storages", j)+".source", v, whole)
	return append(volume(v, whole), Storage{
		drivers: []string{contract.DriverBind}, source: whole, fstype: "bind", at: at,
		driver: []string{contract.OptionSubPath + u.SubPath},
	})
}

// unique keeps the first storage of each mount point.
func unique(list []Storage) []Storage {
	var out []Storage
	for _, s := range list {
		if !slices.ContainsFunc(out, func(o Storage) bool { return o.at == s.at }) {
			out = append(out, s)
		}
	}
	return out
}
