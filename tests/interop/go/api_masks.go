// This file answers: does every field of every mask do what it says, and no other?
package main

import (
	"context"
	"fmt"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// masks are no field, each field alone, and all fields of a mask.
func masks[M proto.Message](empty M) []M {
	var made []M
	all := proto.CloneOf(empty)
	fields := empty.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		one := proto.CloneOf(empty)
		one.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfBool(true))
		all.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfBool(true))
		made = append(made, one)
	}
	return append(made, proto.CloneOf(empty), all)
}

// wanted says whether a mask names a field, or the choice that the field is of.
func wanted(mask proto.Message, field protoreflect.FieldDescriptor) bool {
	names := mask.ProtoReflect().Descriptor().Fields()
	named := names.ByName(field.Name())
	if choice := field.ContainingOneof(); named == nil && choice != nil {
		named = names.ByName(choice.Name())
	}
	return named != nil && mask.ProtoReflect().Get(named).Bool()
}

// keep is whole without the fields that mask does not name; key is always there.
func keep(whole, mask proto.Message, key protoreflect.Name) proto.Message {
	kept := proto.Clone(whole)
	fields := whole.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if field := fields.Get(i); field.Name() != key && !wanted(mask, field) {
			kept.ProtoReflect().Clear(field)
		}
	}
	return kept
}

// outputs judges what a call answers under every output mask.
func outputs[M, T proto.Message](c *check, what string, whole T, empty M, key protoreflect.Name, call func(M) (T, error)) {
	for _, mask := range masks(empty) {
		got, err := call(mask)
		c.ok(err, what)
		want := keep(whole, mask, key)
		c.that(proto.Equal(got, want), "%s with mask {%v}: expected %v, got %v", what, mask, want, got)
	}
}

// only demands one item, and gives it.
func only[T any](items []T, err error) (T, error) {
	var none T
	if err != nil {
		return none, err
	}
	if len(items) != 1 {
		return none, fmt.Errorf("%d items, expected one", len(items))
	}
	return items[0], nil
}

// fullEntry has something in every field that an operator can set.
func (s *suite) fullEntry(name, federatesWith string) *types.Entry {
	return &types.Entry{
		SpiffeId: protoID(s.path(name)), ParentId: protoID(s.path(name + "-parent")),
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:70"}}, X509SvidTtl: 600, JwtSvidTtl: 60,
		FederatesWith: []string{federatesWith}, Admin: true, Downstream: true, ExpiresAt: time.Now().Add(time.Hour).Unix(),
		DnsNames: []string{"full.example.org"}, StoreSvid: true, Hint: name,
		AdditionalAttributes: &types.Entry_AdditionalAttributes{JwtSvidIncludeJti: true},
	}
}

// fullBundle has something in every field.
func (s *suite) fullBundle(c *check, name string, sequence uint64) *types.Bundle {
	foreign, err := newForeignDomain(name)
	c.ok(err, "make a trust domain")
	bundle := foreign.protoBundle()
	own, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
	c.ok(err, "get bundle")
	bundle.JwtAuthorities = own.GetJwtAuthorities()[:1] // any key does
	bundle.RefreshHint, bundle.SequenceNumber = 60, sequence
	return bundle
}

func (s *suite) setBundle(c *check, bundle *types.Bundle) {
	response, err := s.admin.bundles.BatchSetFederatedBundle(c.ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{bundle}})
	c.ok(err, "set bundle")
	c.status(response.GetResults()[0].GetStatus(), codes.OK, "set bundle")
}

func (s *suite) maskChecks(ctx context.Context) {
	masked := s.foreignName("masked")
	var entry *types.Entry
	s.check(ctx, "masks/of-an-entry-that-is-got-listed-or-there-already", func(c *check) {
		s.setBundle(c, s.fullBundle(c, masked, 1))
		sent := s.fullEntry("masked", masked)
		entry = s.create(c, sent)[0]
		outputs(c, "GetEntry", entry, &types.EntryMask{}, "id", func(mask *types.EntryMask) (*types.Entry, error) {
			return s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: entry.GetId(), OutputMask: mask})
		})
		outputs(c, "ListEntries", entry, &types.EntryMask{}, "id", func(mask *types.EntryMask) (*types.Entry, error) {
			response, err := s.admin.entries.ListEntries(c.ctx, &entryv1.ListEntriesRequest{
				Filter: &entryv1.ListEntriesRequest_Filter{BySpiffeId: entry.GetSpiffeId()}, OutputMask: mask,
			})
			return only(response.GetEntries(), err)
		})
		outputs(c, "BatchCreateEntry", entry, &types.EntryMask{}, "id", func(mask *types.EntryMask) (*types.Entry, error) {
			response, err := s.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{sent}, OutputMask: mask})
			result, err := only(response.GetResults(), err)
			if err == nil {
				c.status(result.GetStatus(), codes.AlreadyExists, "create again")
			}
			return result.GetEntry(), err
		})
	})
	s.check(ctx, "masks/of-an-entry-that-is-updated", func(c *check) {
		needs(c, entry)
		for _, mask := range masks(&types.EntryMask{}) {
			response, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{
				Entries: []*types.Entry{{Id: entry.GetId(), Hint: "masked"}}, InputMask: &types.EntryMask{Hint: true}, OutputMask: mask,
			})
			result, err := only(response.GetResults(), err)
			c.ok(err, "update")
			whole, err := s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: entry.GetId()})
			c.ok(err, "get")
			c.that(proto.Equal(result.GetEntry(), keep(whole, mask, "id")), "with mask {%v}: got %v", mask, result.GetEntry())
		}
	})
	s.check(ctx, "masks/of-the-entries-of-a-node", func(c *check) {
		needs(c, s.node)
		own := s.fullEntry("masked-of-node", masked)
		own.ParentId = protoID(s.node.svid.ID)
		own = s.create(c, own)[0]
		s.eventually(c, func() string { return lacks(s.authorized(c, s.node), idString(own.GetSpiffeId())) })
		outputs(c, "GetAuthorizedEntries", own, &types.EntryMask{}, "id", func(mask *types.EntryMask) (*types.Entry, error) {
			response, err := s.node.entries.GetAuthorizedEntries(c.ctx, &entryv1.GetAuthorizedEntriesRequest{OutputMask: mask})
			for _, one := range response.GetEntries() {
				if one.GetId() == own.GetId() {
					return one, err
				}
			}
			return nil, err
		})
	})
	s.check(ctx, "masks/of-an-agent", func(c *check) {
		needs(c, s.node)
		_, err := s.node.agents.PostStatus(c.ctx, &agentv1.PostStatusRequest{AgentVersion: "interop"})
		c.ok(err, "post status")
		id := protoID(s.node.svid.ID)
		whole, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: id})
		c.ok(err, "get")
		equal(c, "agent version", whole.GetAgentVersion(), "interop")
		outputs(c, "GetAgent", whole, &types.AgentMask{}, "id", func(mask *types.AgentMask) (*types.Agent, error) {
			return s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: id, OutputMask: mask})
		})
		outputs(c, "ListAgents", whole, &types.AgentMask{}, "id", func(mask *types.AgentMask) (*types.Agent, error) {
			response, err := s.admin.agents.ListAgents(c.ctx, &agentv1.ListAgentsRequest{OutputMask: mask})
			for _, one := range response.GetAgents() {
				if idString(one.GetId()) == idString(id) {
					return one, err
				}
			}
			return nil, err
		})
	})
	s.check(ctx, "masks/of-a-bundle", func(c *check) {
		own, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get")
		outputs(c, "GetBundle", own, &types.BundleMask{}, "trust_domain", func(mask *types.BundleMask) (*types.Bundle, error) {
			return s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{OutputMask: mask})
		})
		whole, err := s.admin.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: masked})
		c.ok(err, "get")
		outputs(c, "GetFederatedBundle", whole, &types.BundleMask{}, "trust_domain", func(mask *types.BundleMask) (*types.Bundle, error) {
			return s.admin.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: masked, OutputMask: mask})
		})
		outputs(c, "BatchSetFederatedBundle", whole, &types.BundleMask{}, "trust_domain", func(mask *types.BundleMask) (*types.Bundle, error) {
			response, err := s.admin.bundles.BatchSetFederatedBundle(c.ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{whole}, OutputMask: mask})
			result, err := only(response.GetResults(), err)
			return result.GetBundle(), err
		})
		outputs(c, "BatchUpdateFederatedBundle", whole, &types.BundleMask{}, "trust_domain", func(mask *types.BundleMask) (*types.Bundle, error) {
			response, err := s.admin.bundles.BatchUpdateFederatedBundle(c.ctx, &bundlev1.BatchUpdateFederatedBundleRequest{Bundle: []*types.Bundle{whole}, OutputMask: mask})
			result, err := only(response.GetResults(), err)
			return result.GetBundle(), err
		})
		outputs(c, "ListFederatedBundles", whole, &types.BundleMask{}, "trust_domain", func(mask *types.BundleMask) (*types.Bundle, error) {
			response, err := s.admin.bundles.ListFederatedBundles(c.ctx, &bundlev1.ListFederatedBundlesRequest{OutputMask: mask})
			for _, one := range response.GetBundles() {
				if one.GetTrustDomain() == masked {
					return one, err
				}
			}
			return nil, err
		})
	})
	s.check(ctx, "masks/of-a-federation-relationship", func(c *check) {
		foreign, err := newForeignDomain(s.foreignName("masked-relationship"))
		c.ok(err, "make a trust domain")
		sent := foreign.relationship(foreign.protoBundle())
		created, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{sent},
		})
		_, err = only(created.GetResults(), err)
		c.ok(err, "create")
		whole, err := s.admin.trustDomains.GetFederationRelationship(c.ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: foreign.domain.Name()})
		c.ok(err, "get")
		c.that(whole.GetTrustDomainBundle() != nil && whole.GetHttpsSpiffe() != nil, "it lacks bundle or profile: %v", whole)
		none := &types.FederationRelationshipMask{}
		outputs(c, "GetFederationRelationship", whole, none, "trust_domain", func(mask *types.FederationRelationshipMask) (*types.FederationRelationship, error) {
			return s.admin.trustDomains.GetFederationRelationship(c.ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: foreign.domain.Name(), OutputMask: mask})
		})
		outputs(c, "ListFederationRelationships", whole, none, "trust_domain", func(mask *types.FederationRelationshipMask) (*types.FederationRelationship, error) {
			response, err := s.admin.trustDomains.ListFederationRelationships(c.ctx, &trustdomainv1.ListFederationRelationshipsRequest{OutputMask: mask})
			return only(response.GetFederationRelationships(), err)
		})
		outputs(c, "BatchUpdateFederationRelationship", whole, none, "trust_domain", func(mask *types.FederationRelationshipMask) (*types.FederationRelationship, error) {
			response, err := s.admin.trustDomains.BatchUpdateFederationRelationship(c.ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
				FederationRelationships: []*types.FederationRelationship{whole}, OutputMask: mask,
			})
			result, err := only(response.GetResults(), err)
			return result.GetFederationRelationship(), err
		})
		s.endFederation(c, foreign.domain.Name())
	})
}

func (s *suite) endFederation(c *check, name string) {
	ended, err := s.admin.trustDomains.BatchDeleteFederationRelationship(c.ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{name}})
	result, err := only(ended.GetResults(), err)
	c.ok(err, "delete")
	c.status(result.GetStatus(), codes.OK, "delete")
}

// inputMaskChecks change one field at a time: it takes the new value, and no other does.
func (s *suite) inputMaskChecks(ctx context.Context) {
	one, two := s.foreignName("input-one"), s.foreignName("input-two")
	s.check(ctx, "masks/of-what-an-entry-is-updated-with", func(c *check) {
		s.setBundle(c, &types.Bundle{TrustDomain: one})
		s.setBundle(c, &types.Bundle{TrustDomain: two})
		held := s.create(c, s.fullEntry("input", one))[0]
		next := &types.Entry{
			Id: held.GetId(), SpiffeId: protoID(s.path("input-2")), ParentId: protoID(s.path("input-parent-2")),
			Selectors: []*types.Selector{{Type: "k8s", Value: "ns:a"}}, X509SvidTtl: 601, JwtSvidTtl: 61, FederatesWith: []string{two},
			ExpiresAt: held.GetExpiresAt() + 60, DnsNames: []string{"next.example.org"}, Hint: "next",
			AdditionalAttributes: &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true},
			RevisionNumber:       1, CreatedAt: 1, // which nobody can set
		}
		fields := held.ProtoReflect().Descriptor().Fields()
		for _, mask := range masks(&types.EntryMask{}) {
			response, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{next}, InputMask: mask})
			result, err := only(response.GetResults(), err)
			c.ok(err, "update")
			c.status(result.GetStatus(), codes.OK, fmt.Sprintf("update with mask {%v}", mask))
			want := proto.CloneOf(held)
			for i := range fields.Len() {
				field := fields.Get(i)
				if name := field.Name(); name == "revision_number" || name == "created_at" || !wanted(mask, field) {
					continue
				}
				if next.ProtoReflect().Has(field) {
					want.ProtoReflect().Set(field, next.ProtoReflect().Get(field))
				} else {
					want.ProtoReflect().Clear(field)
				}
			}
			got := result.GetEntry()
			sameEntry(c, fmt.Sprintf("after mask {%v}", mask), got, want)
			equal(c, "creation time", got.GetCreatedAt(), held.GetCreatedAt())
			c.that(got.GetRevisionNumber() >= held.GetRevisionNumber(), "the revision number fell from %d to %d", held.GetRevisionNumber(), got.GetRevisionNumber())
			held = got
		}
	})
	s.check(ctx, "masks/of-what-a-bundle-is-updated-with", func(c *check) {
		name := s.foreignName("input-bundle")
		held, next := s.fullBundle(c, name, 1), s.fullBundle(c, name, 2)
		next.RefreshHint, next.JwtAuthorities = 61, nil
		s.setBundle(c, held)
		fields := held.ProtoReflect().Descriptor().Fields()
		for _, mask := range masks(&types.BundleMask{}) {
			response, err := s.admin.bundles.BatchUpdateFederatedBundle(c.ctx, &bundlev1.BatchUpdateFederatedBundleRequest{Bundle: []*types.Bundle{next}, InputMask: mask})
			result, err := only(response.GetResults(), err)
			c.ok(err, "update")
			c.status(result.GetStatus(), codes.OK, fmt.Sprintf("update with mask {%v}", mask))
			want := proto.CloneOf(held)
			for i := range fields.Len() {
				if field := fields.Get(i); wanted(mask, field) {
					want.ProtoReflect().Clear(field)
					if next.ProtoReflect().Has(field) {
						want.ProtoReflect().Set(field, next.ProtoReflect().Get(field))
					}
				}
			}
			c.that(proto.Equal(result.GetBundle(), want), "after mask {%v}: expected %v, got %v", mask, want, result.GetBundle())
			held = want
		}
	})
	s.check(ctx, "masks/of-what-a-federation-relationship-is-updated-with", func(c *check) {
		foreign, err := newForeignDomain(s.foreignName("input-relationship"))
		c.ok(err, "make a trust domain")
		held := foreign.relationship(foreign.protoBundle())
		created, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{held},
		})
		_, err = only(created.GetResults(), err)
		c.ok(err, "create")
		next := &types.FederationRelationship{
			TrustDomain: held.GetTrustDomain(), BundleEndpointUrl: "https://next.test/bundle",
			BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
			TrustDomainBundle:     s.fullBundle(c, held.GetTrustDomain(), 7),
		}
		for _, mask := range masks(&types.FederationRelationshipMask{}) {
			response, err := s.admin.trustDomains.BatchUpdateFederationRelationship(c.ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
				FederationRelationships: []*types.FederationRelationship{next}, InputMask: mask,
			})
			result, err := only(response.GetResults(), err)
			c.ok(err, "update")
			c.status(result.GetStatus(), codes.OK, fmt.Sprintf("update with mask {%v}", mask))
			if mask.BundleEndpointUrl {
				held.BundleEndpointUrl = next.BundleEndpointUrl
			}
			if mask.BundleEndpointProfile {
				held.BundleEndpointProfile = next.BundleEndpointProfile
			}
			if mask.TrustDomainBundle {
				held.TrustDomainBundle = next.TrustDomainBundle
			}
			got := result.GetFederationRelationship()
			c.that(proto.Equal(got, held), "after mask {%v}: expected %v, got %v", mask, held, got)
		}
		s.endFederation(c, held.GetTrustDomain())
	})
}
