"""Masks in the formats of labelling tools and trainers, and back: COCO, YOLO-seg, Label Studio, VOC and CVAT."""
